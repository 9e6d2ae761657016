"""LPIPS (Zhang et al., 2018, Eq. 1): distance in the features of VGG16, with the published linear heads.

The equation is in `_perceptual`; here are its network and its weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast
from pidistill.files.downloads import check_hash, fetch_published
from pidistill.files.selection import load_chosen, split_entry
from pidistill.files.weights import read_state_dict
from pidistill.nets.features.base import IMAGENET_MEAN, IMAGENET_STD
from pidistill.nets.parts.native import conv3x3
from pidistill.objectives.distances._perceptual import Perceptual

VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"  # torchvision's, ImageNet-1k
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))        # channels and convolutions between two poolings


class LPIPS(Perceptual):
    """The distance compares images (B, 1 or 3, H, W) in [-1, 1], twice -> (B,), in VGG16's maps.

    pool: `avg` as the reference implementation of PID, `max` as VGG16 was trained and LPIPS published.
    size: images are resized to size x size, bilinearly; None leaves them (at least 16 pixels). The paper's text has 244,
        its code 224.
    weights: a file with VGG16's weights; by default torchvision's, from its cache or fetched there (528 MB).
    precision: of the convolutions, whatever the run's is.
    channels_last: memory format of the convolutions.
    microbatch: samples that go through the network at a time.
    """

    def __init__(self, *, pool: Literal["avg", "max"] = "avg", size: int | None = 224, weights: str | None = None,
                 precision: Autocast = "fp32", channels_last: bool = False,
                 microbatch: int | None = None):
        super().__init__(size, precision, channels_last, microbatch)
        if size is not None and size < 16:
            raise PidistillError(f"lpips: size must be at least 16, since VGG16 halves it four times, got {size}")
        self.pool = F.avg_pool2d if pool == "avg" else F.max_pool2d
        self.convs = nn.ModuleDict()  # named by the place in torchvision's `features`, which the weights are called after
        place, channels = 0, 3
        for width, depth in STAGES:
            for _ in range(depth):
                self.convs[str(place)] = nn.Conv2d(channels, width, 3, padding=1)
                place, channels = place + 2, width  # after each convolution a ReLU
            place += 1                              # after each stage a pooling
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))
        for k, (width, _) in enumerate(STAGES):
            self.register_buffer(f"head{k}", torch.empty(width))
        if self.mean.device.type != "meta":  # a dry run needs no weights
            self.load(weights)
        self.freeze()

    mean: Tensor
    std: Tensor

    def load(self, weights: str | None) -> None:
        """Load VGG16's weights and the linear heads. Raises PidistillError in one line."""
        path, entry = split_entry(weights) if weights else (
            fetch_published(VGG16, "VGG16", "objective.distance.weights=FILE"), None)
        check_hash(path)
        load_chosen(self.convs, path, "VGG16's features", entry=entry, own=("", "features"), unused={"classifier": ""})
        heads = read_state_dict(find_heads())
        for k in range(len(STAGES)):
            getattr(self, f"head{k}").copy_(heads[f"lin{k}.model.1.weight"].flatten())

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse a run on samples of shape (C, H, W) that are no images, before it begins."""
        if len(shape) != 3 or shape[0] not in (1, 3) or (self.size is None and min(shape[1:]) < 16):
            raise PidistillError(f"lpips compares grey or RGB images (of at least 16 pixels, or resized), got {shape}")

    @property
    def heads(self) -> list[Tensor]:
        return [getattr(self, f"head{k}") for k in range(len(STAGES))]

    def layers(self, x: Tensor) -> list[Tensor]:
        """Give the maps relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
        x = ((x.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std  # grey images: three equal channels
        maps, convs = [], iter(self.convs.values())
        for stage, (_, depth) in enumerate(STAGES):
            x = self.pool(x, 2) if stage else x
            for _ in range(depth):
                conv: Any = next(convs)
                x = F.relu(conv3x3(x, conv.weight, conv.bias), inplace=True)  # a convolution does not keep its output
            maps.append(x)
        return maps


def find_heads() -> Path:
    """Find the linear heads v0.1 for VGG in the package lpips, which is not imported for it."""
    spec = find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise PidistillError("lpips: the package lpips, which carries the linear heads, is not installed: pip install lpips")
    return Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / "vgg.pth"
