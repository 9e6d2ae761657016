"""Feature networks that images are compared in, and the reference statistics of data in their features."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.files import load_weights, read_json, read_tensors
from pidistill.plugins import build, choices

ASSETS = Path(__file__).parent / "assets"


class FeatureNet(Protocol):
    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> features (B, d), for metrics."""
        ...

    def layers(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) in [-1, 1] -> maps (B, c, ...) of several layers, for distances."""
        ...


def load_features(name: str) -> FeatureNet:
    """A bundled feature network, in evaluation mode: `digits`."""
    known = sorted(path.parent.name for path in ASSETS.glob("*/features"))
    if name not in known:
        raise choices("feature network", name, known)
    folder = ASSETS / name / "features"
    config = read_json(folder / "config.json")
    net = build("nets", config["net"].pop("name"), **config["net"])
    load_weights(net, read_tensors(folder / "model.safetensors"), folder)
    return net.eval().requires_grad_(False)


def load_reference(name: str) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), float64, of the bundled data in the features of the same name."""
    path = ASSETS / name / "features" / "reference.safetensors"
    if not path.exists():
        raise PidistillError(f"there are no reference statistics for {name!r}")
    tensors = read_tensors(path)
    return tensors["mean"], tensors["covariance"]
