"""The classifier whose features measure the bundled digits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.files.reading import read_json
from pidistill.files.weights import load_weights, read_tensors


def digit_classifier(folder: str) -> DigitClassifier:
    """Load the classifier of a folder that holds its config.json and model.safetensors.

    The configuration is {"net": {"name": "digit_classifier", options}}.
    """
    config = dict(read_json(Path(folder) / "config.json")["net"])
    config.pop("name")
    net = DigitClassifier(**config)
    load_weights(net, read_tensors(Path(folder) / "model.safetensors"), Path(folder))
    return net


class DigitClassifier(nn.Module):
    """The network classifies digits (B, 1, 16, 16) in [-1, 1] -> logits (B, 10); `features` are the (B, dim) before those.

    width: channels of the first two convolutions; the last two have twice as many.
    dim: number of features.
    pool: halves height and width after the second and the fourth convolution.
    """

    shape = (1, 16, 16)

    def __init__(self, *, width: int = 24, dim: int = 32, pool: Literal["max", "avg"] = "max"):
        super().__init__()
        self.pool: nn.Module = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[pool](2)  # averages: smoother gradients
        widths = [(1, width), (width, width), (width, 2 * width), (2 * width, 2 * width)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths)
        self.fc, self.out = nn.Linear(2 * width * 16, dim), nn.Linear(dim, 10)

    def layers(self, x: Tensor) -> list[Tensor]:
        """Give the maps after each of the four convolutions: two of 16x16, two of 8x8 positions."""
        maps = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = self.pool(x) if i == 2 else x
            x = F.relu(norm(conv(x)))
            maps.append(x)
        return maps

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(self.pool(self.layers(x)[-1]).flatten(1)))

    def classify(self, features: Tensor) -> Tensor:
        """Give the logits of features, (B, dim) -> (B, 10)."""
        return self.out(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))
