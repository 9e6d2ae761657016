"""Feature networks that images are compared in, and the reference statistics of data in their features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError, first_line
from pidistill.core.registry import build, choices, from_python
from pidistill.files.downloads import published
from pidistill.files.folders import ASSETS
from pidistill.files.reading import read_json
from pidistill.files.weights import load_weights, read_tensors
from pidistill.nets.features.dinov2 import DINOV2_URL, Dinov2, load_dinov2
from pidistill.nets.features.inception import Inception


class FeatureFunction(nn.Module):
    """A user's network: images (B, C, H, W) in [-1, 1] -> maps (B, c, ...), one or several.

    `features` gives (B, d) for metrics: the last map's mean over positions. `layers` gives all maps, for distances.
    Bundled networks have the same two methods, and so may a user's; with `classify`, features -> logits (B, classes), a
    network has an Inception Score.
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
    """A feature network in evaluation mode, with `features` and `layers`.

    spec: a bundled name (`digits`, `digits_perceptual`), `inception[:FILE]`, `dinov2[:FILE]`, a TorchScript file (.ts, .pt,
    .pth), a torch.export file (.pt2), or python:MODULE:FACTORY. The last three run what they hold: the user's module, a
    program, and, inside PyTorch's own reader of .pt2, pickles. Name only what you made. Raises PidistillError in one line.
    """
    known = sorted(path.parent.name for path in ASSETS.glob("*/features"))
    path = Path(spec)
    kind, _, rest = spec.partition(":")
    net: nn.Module
    if kind == "inception":
        net = Inception(rest or None)
    elif kind == "dinov2":
        net = load_dinov2(Path(rest) if rest else published(DINOV2_URL, "DINOv2", "evaluate.features=dinov2:FILE"))
    elif kind == "python":
        made = from_python(rest, "feature network")
        made = made.eval() if isinstance(made, nn.Module) else made
        net = made if isinstance(made, nn.Module) and hasattr(made, "features") else FeatureFunction(made)
    elif path.suffix in (".ts", ".pt", ".pth", ".pt2"):
        net = FeatureFunction(read_program(path))
    elif spec not in known:
        kinds = ["inception", "dinov2", "FILE.ts", "FILE.pt2", "python:MODULE:FACTORY"]
        raise choices("feature network", spec, [*known, *kinds])
    else:
        folder = ASSETS / spec / "features"
        config = read_json(folder / "config.json")
        net = build("nets", config["net"].pop("name"), **config["net"])
        load_weights(net, read_tensors(folder / "model.safetensors"), folder)
        net.eval()
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
    """The number of features of an image; images of a shape (C, H, W) that the network cannot take are refused."""
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


def distance_name(net: Any) -> str:
    """What the Frechet distance in these features is called: `fid` of Inception's, `fd_dinov2` of DINOv2's, else `fd`."""
    return "fid" if isinstance(net, Inception) else "fd_dinov2" if isinstance(net, Dinov2) else "fd"


def fingerprint(net: nn.Module) -> str | None:
    """SHA-256 over the names, shapes and values of a network's weights; None for one that has none."""
    state, digest = net.state_dict(), hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest() if state else None
