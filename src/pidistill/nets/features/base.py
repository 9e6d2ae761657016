"""Feature networks, in which images are compared: what they have in common, and how one is loaded.

FID is the Frechet distance in Inception's features, FD-DINOv2 that in DINOv2's; `lpips` compares maps of VGG16, and
`features` those of any network of this folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError, words_of
from pidistill.core.registry import build, build_from_python, list_members, suggest_choices
from pidistill.files.folders import ASSETS
from pidistill.files.reading import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of images in [0, 1]


@runtime_checkable
class FeatureNetwork(Protocol):
    """A feature network is one in which images (B, C, H, W) in [-1, 1] are compared.

    It may also have `shape`, the only images (C, H, W) that it takes; `classify`, features -> logits (B, classes), with
    which it has an Inception Score; and `distance`, the name of the Frechet distance in its features.
    """

    def features(self, x: Tensor) -> Tensor:
        """Give one vector an image, (B, d), for metrics."""
        ...

    def layers(self, x: Tensor) -> list[Tensor]:
        """Give the maps (B, c, ...) of several layers, for distances."""
        ...


class FeatureFunction(nn.Module):
    """The class makes a feature network of a function of images that gives maps (B, c, ...), one or several.

    Its `features` are the means of the last map over its positions.
    """

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function = function

    def layers(self, x: Tensor) -> list[Tensor]:
        maps = self.function(x)
        return list(maps) if isinstance(maps, (list, tuple)) else [maps]

    def features(self, x: Tensor) -> Tensor:
        last = self.layers(x)[-1]
        return last.flatten(2).mean(dim=2) if last.ndim > 2 else last


def load_features(spec: str) -> Any:
    """Load a feature network, in evaluation mode and without gradients of its weights: see `FeatureNetwork`.

    spec: a bundled name (`digits`, `digits_perceptual`), KIND[:FILE] with a kind of this folder (`inception`, `dinov2`), a
    TorchScript file (.ts, .pt, .pth), a torch.export file (.pt2), or python:MODULE:FACTORY. The last three run what they
    hold: the user's module, a program, and, inside PyTorch's own reader of .pt2, pickles. Name only what you made.

    Raises PidistillError in one line.
    """
    bundled = {path.parent.name: path for path in ASSETS.glob("*/features")}
    kind, _, rest = spec.partition(":")
    net: nn.Module
    if spec in bundled:
        net = build("features", read_json(bundled[spec] / "config.json")["net"]["name"], str(bundled[spec])).eval()
    elif kind in list_members("features"):
        net = build("features", kind, rest).eval()
    elif kind == "python":
        function = build_from_python(rest, "feature network")
        function = function.eval() if isinstance(function, nn.Module) else function
        complete = isinstance(function, nn.Module) and hasattr(function, "features")
        net = function if complete else FeatureFunction(function)
    elif Path(spec).suffix in (".ts", ".pt", ".pth", ".pt2"):
        net = FeatureFunction(read_program(Path(spec)))
    else:
        raise suggest_choices("feature network", spec, [*sorted(bundled), "inception", "dinov2", "FILE.ts", "FILE.pt2",
                                                        "python:MODULE:FACTORY"])
    return net.requires_grad_(False)


def read_program(path: Path) -> Callable[[Tensor], Any]:
    """Load a function of images from a TorchScript or torch.export file, which is code and runs with the user's rights.

    It is only ever called for a file that the user names as such. Raises PidistillError in one line.
    """
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    try:
        # An exported program has no modes: it was put in evaluation mode, or not, when it was exported.
        return torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # a damaged file can end in almost any of them
        kind = "torch.export" if path.suffix == ".pt2" else "TorchScript"
        raise PidistillError(f"cannot read {path} as a {kind} file, which is a program ({words_of(error)})") from None


def check_shape(net: Any, shape: Sequence[int], name: str) -> int:
    """Count the features of an image, and refuse images that the feature network cannot take.

    shape: of an image, (C, H, W).
    name: of the network, for messages.
    """
    only_shape = getattr(net, "shape", None)
    if only_shape is not None and tuple(shape) != tuple(only_shape):
        raise PidistillError(f"the features {name!r} are of images of shape {tuple(only_shape)}, these have {tuple(shape)}")
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            images = torch.zeros(2, *shape, device=device)
            maps = net.layers(images) if hasattr(net, "layers") else [net.features(images)]
            valid = all(isinstance(f, Tensor) and f.ndim >= 2 and len(f) == 2 and f.is_floating_point() for f in maps)
            features = net.features(images) if valid else maps[-1]
            width = int(features.shape[-1]) if valid else 0
    except Exception as error:  # whatever the user's network raises
        raise PidistillError(f"the feature network {name!r} cannot take images of shape {tuple(shape)}: "
                             f"{words_of(error)}") from None
    if not valid:
        raise PidistillError(f"the feature network {name!r} must give tensors (B, c, ...), one or a list of them, got "
                             f"{[tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in maps]}")
    if features.ndim != 2 or not width:
        raise PidistillError(f"the feature network {name!r} must give features (B, d) of an image, got "
                             f"{tuple(features.shape)} of two; flatten(1) makes them so")
    return width


def fingerprint(net: nn.Module) -> str | None:
    """Hash the names, shapes and values of a network's weights by SHA-256; gives None for a network without any."""
    state, digest = net.state_dict(), hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest() if state else None
