"""LPIPS's distance over another feature network than VGG16."""

from __future__ import annotations

from torch import Tensor

from pidistill.distances import Perceptual
from pidistill.features import load_features


class Features(Perceptual):
    """sum over layers of mean over positions of |a - b|^2, a and b the unit-length feature vectors, (B, ...) twice -> (B,).

    net: a bundled feature network, such as `digits_perceptual`. normalize: False compares the features as they are.
    """

    def __init__(self, *, net: str, normalize: bool = True):
        super().__init__()
        self.net, self.normalize = load_features(net), normalize

    def layers(self, x: Tensor) -> list[Tensor]:
        return self.net.layers(x)
