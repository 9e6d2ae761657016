"""Feature networks, which images are compared in: what they have in common, and how one is loaded.

FID is the Frechet distance in Inception's features, FD-DINOv2 that in DINOv2's; `lpips` compares maps of VGG16, and
`features` those of any network of this folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError, first_line
from pidistill.core.registry import build, build_from_python, list_members, suggest_choices
from pidistill.files.folders import ASSETS
from pidistill.files.reading import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of images in [0, 1]


class FeatureNetwork(Protocol):
    """A network that images (B, C, H, W) in [-1, 1] are compared in.

    It may also have `shape`, the only images (C, H, W) that it takes; `classify`, features -> logits (B, classes), with which
    it has an Inception Score; and `distance`, what the Frechet distance in its features is called.
    """

    def features(self, x: Tensor) -> Tensor:
        """One vector an image, (B, d), for metrics."""
        ...

    def layers(self, x: Tensor) -> list[Tensor]:
        """Maps (B, c, ...) of several layers, for distances."""
        ...


class FeatureFunction(nn.Module):
    """A function of images that gives maps (B, c, ...), one or several, as a feature network.

    `features` is the mean of the last map over its positions.
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
        made = build_from_python(rest, "feature network")
        made = made.eval() if isinstance(made, nn.Module) else made
        net = made if isinstance(made, nn.Module) and hasattr(made, "features") else FeatureFunction(made)
    elif Path(spec).suffix in (".ts", ".pt", ".pth", ".pt2"):
        net = FeatureFunction(read_program(Path(spec)))
    else:
        raise suggest_choices("feature network", spec, [*sorted(bundled), "inception", "dinov2", "FILE.ts", "FILE.pt2",
                                                        "python:MODULE:FACTORY"])
    return net.requires_grad_(False)


def read_program(path: Path) -> Callable[[Tensor], Any]:
    """A file that is code by nature, and runs with the user's rights: only ever one that the user names as such."""
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    try:
        # An exported program has no modes: it was put in evaluation mode, or not, when it was exported.
        return torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # a damaged file can end in almost any of them
        kind = "torch.export" if path.suffix == ".pt2" else "TorchScript"
        raise PidistillError(f"cannot read {path} as a {kind} file, which is a program ({first_line(error)})") from None


def check_shape(net: Any, shape: Sequence[int], name: str) -> int:
    """Count the features of an image; images of a shape (C, H, W) that the network cannot take are refused."""
    wanted = getattr(net, "shape", None)
    if wanted is not None and tuple(shape) != tuple(wanted):
        raise PidistillError(f"the features {name!r} are of images of shape {tuple(wanted)}, these have {tuple(shape)}")
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            images = torch.zeros(2, *shape, device=device)
            maps = net.layers(images) if hasattr(net, "layers") else [net.features(images)]
            sound = all(isinstance(f, Tensor) and f.ndim >= 2 and len(f) == 2 and f.is_floating_point() for f in maps)
            width = int(net.features(images).shape[1]) if sound else 0
    except Exception as error:  # whatever the user's network raises
        raise PidistillError(f"the feature network {name!r} cannot take images of shape {tuple(shape)}: "
                             f"{first_line(error)}") from None
    if not sound:
        raise PidistillError(f"the feature network {name!r} must give tensors (B, c, ...), one or a list of them, got "
                             f"{[tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in maps]}")
    return width


def fingerprint(net: nn.Module) -> str | None:
    """SHA-256 over the names, shapes and values of a network's weights; None for one that has none."""
    state, digest = net.state_dict(), hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest() if state else None
