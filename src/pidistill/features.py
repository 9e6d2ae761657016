"""Feature networks that images are compared in, and the reference statistics of data in their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.files import load_weights, read_json, read_tensors
from pidistill.plugins import build, choices, from_python

ASSETS = Path(__file__).parent / "assets"


class FeatureFunction(nn.Module):
    """A user's network: images (B, C, H, W) in [-1, 1] -> maps (B, c, ...), one or several.

    `features` gives (B, d) for metrics: the last map's mean over positions. `layers` gives all maps, for distances.
    Bundled networks have the same two methods.
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

    spec: a bundled name (`digits`, `digits_perceptual`), a TorchScript file (.ts, .pt, .pth), a torch.export file
    (.pt2), or python:MODULE:FACTORY. These three run what they hold: the user's module, a program, and, inside
    PyTorch's own reader of .pt2, pickles. Name only what you made. Raises PidistillError in one line.
    """
    known = sorted(path.parent.name for path in ASSETS.glob("*/features"))
    path = Path(spec)
    if spec.startswith("python:"):
        made = from_python(spec.removeprefix("python:"), "feature network")
        net = FeatureFunction(made.eval() if isinstance(made, nn.Module) else made)
    elif path.suffix in (".ts", ".pt", ".pth", ".pt2"):
        net = FeatureFunction(read_program(path))
    elif spec not in known:
        raise choices("feature network", spec, [*known, "FILE.ts", "FILE.pt2", "python:MODULE:FACTORY"])
    else:
        folder = ASSETS / spec / "features"
        config = read_json(folder / "config.json")
        net = build("nets", config["net"].pop("name"), **config["net"])
        load_weights(net, read_tensors(folder / "model.safetensors"), folder)
        net.eval()
    return net.requires_grad_(False)


def read_program(path: Path) -> Callable[[Tensor], Any]:
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    try:
        # An exported program has no modes: it was put in evaluation mode, or not, when it was exported.
        return torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # a damaged file can end in almost any of them
        kind = "torch.export" if path.suffix == ".pt2" else "TorchScript"
        raise PidistillError(f"cannot read {path} as a {kind} file ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What went wrong, short enough for one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def check_shape(net: Any, shape: Sequence[int], name: str) -> None:
    """Refuse images of a shape (C, H, W) that the network cannot take."""
    wanted = getattr(net, "shape", None)
    if wanted is not None:
        if tuple(shape) != tuple(wanted):
            raise PidistillError(f"the features {name!r} are of images of shape {tuple(wanted)}, the model's have "
                                 f"{tuple(shape)}")
        return
    try:
        with torch.no_grad():
            maps = net.layers(torch.zeros(2, *shape))
    except Exception as error:  # whatever the user's network raises
        raise PidistillError(f"the feature network {name!r} cannot take images of shape {tuple(shape)}: "
                             f"{first_line(error)}") from None
    if not all(isinstance(f, Tensor) and f.ndim >= 2 and len(f) == 2 and f.is_floating_point() for f in maps):
        raise PidistillError(f"the feature network {name!r} must give tensors (B, c, ...), one or a list of them, got "
                             f"{[tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in maps]}")


def load_reference(name: str) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), float64, of the bundled data in the features of the same name."""
    path = ASSETS / name / "features" / "reference.safetensors"
    if not path.exists():
        raise PidistillError(f"there are no reference statistics for {name!r}")
    tensors = read_tensors(path)
    return tensors["mean"], tensors["covariance"]
