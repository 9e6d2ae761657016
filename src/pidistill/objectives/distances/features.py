"""LPIPS's distance over another feature network than VGG16, without weights: the sum over layers l of

    mean over positions p of |f_lp(a)/|f_lp(a)| - f_lp(b)/|f_lp(b)||^2.
"""

from __future__ import annotations

from torch import Tensor

from pidistill.core.precision import Autocast
from pidistill.nets.features.base import check_shape, load_features
from pidistill.objectives.distances._perceptual import Perceptual


class Features(Perceptual):
    """The distance compares the maps of a feature network of the user's choice, (B, C, H, W) twice -> (B,).

    net: a bundled feature network, such as `digits_perceptual`; a TorchScript file (.ts, .pt) or torch.export file (.pt2),
        or python:MODULE:FACTORY, each a function of images in [-1, 1] that gives (B, c, ...) or several of them. These run
        what they hold: name only what you made.
    normalize: False compares the features as they are, and not their directions.
    size, precision, channels_last, microbatch: as in `lpips`.
    """

    def __init__(self, *, net: str, normalize: bool = True, size: int | None = None, precision: Autocast = "fp32",
                 channels_last: bool = False, microbatch: int | None = None):
        super().__init__(size, precision, channels_last, microbatch)
        self.net, self.name, self.normalize = load_features(net), net, normalize
        self.freeze()

    def layers(self, x: Tensor) -> list[Tensor]:
        return self.net.layers(x)

    def check(self, shape: tuple[int, ...]) -> None:
        check_shape(self.net, (shape[0], self.size, self.size) if self.size else shape, self.name)
