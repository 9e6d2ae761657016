"""A metric is a number of a set of images, added up batch by batch. One file = one metric.

What a metric keeps are sums over images. Batches may come in any order, from several processes, or from a program that was
interrupted: their sums are added, and memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """A reference is what the data looks like to a feature network.

    mean, covariance: (d,) and (d, d), float64.
    features: (K, d) float32 of some of its images, where they were kept.
    network: fingerprint of the network, where it is known.
    num: number of the images that it was made from.
    source: where it comes from, for people.
    """

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None
    network: str | None = None
    num: int | None = None
    source: str = ""


@dataclass(frozen=True)
class ImageBatch:
    """A batch is images (B, C, H, W) in [-1, 1], and what networks and the teacher make of them where a metric needs it.

    rows: the images' places in the set.
    features: (B, d). logits: (B, K). solutions: the teacher's images for the same noise, (B, C, H, W).
    """

    images: Tensor
    rows: Sequence[int]
    features: Tensor | None = None
    logits: Tensor | None = None
    solutions: Tensor | None = None


class Metric:
    """Subclasses set `needs` and define `add`, `result` and `doubts`; `state` holds tensors that are sums over images.

    needs: `features`, `logits` or `solutions` of a batch, or `stored`: all features, which `result` gets, and those of the
        reference.
    least: images that it takes at least; of fewer there is no such number.
    remarks: sentences on the numbers that `result` gave, for people.
    num: images in the set. width: d, or the number of logits.
    reference: of the data, for metrics that compare with it.
    key: of the Frechet distance in these features: `fid`, `fd_dinov2` or `fd`.
    device: of the sums, which are on the CPU where it has no float64.
    """

    needs: str = "features"
    least: int = 2

    def __init__(self, num: int, width: int, reference: Reference | None, key: str = "", device: torch.device | str = "cpu"):
        self.num, self.reference, self.key = num, reference, key
        self.state: dict[str, Tensor] = {}
        self.remarks: list[str] = []

    def count_smaller(self) -> int:
        """Count the images of the smaller set, where two are compared: the model's, or the kept ones of the data."""
        kept = None if self.reference is None else self.reference.features
        return self.num if kept is None else min(self.num, len(kept))

    def add(self, batch: ImageBatch) -> None:
        """Add a batch to the sums."""

    def doubts(self) -> list[str]:
        """Say, a sentence each, why the numbers will mean little: so few images, or such a reference."""
        return []

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        """Compute the numbers from the sums, by key. stored: all features (num, d) float32, CPU, where `needs` says so."""
        raise NotImplementedError
