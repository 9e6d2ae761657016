"""Metrics: numbers of a set of images, added up batch by batch. One file = one metric.

What a metric keeps are sums. Batches may come in any order, from several processes, or from a program that was interrupted:
their sums are added, and memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """What the data looks like to a feature network.

    mean (d,) and covariance (d, d), float64; features (K, d) float32 of some of its images, where they were kept; network:
    fingerprint of the network, where it is known; num: how many images it was made from; source: for people.
    """

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None
    network: str | None = None
    num: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) in [-1, 1] and what networks and the teacher make of them.

    rows: their places among all images of the set. features (B, d), logits (B, K), solutions (B, C, H, W): where asked for.
    """

    images: Tensor
    rows: Sequence[int]
    features: Tensor | None = None
    logits: Tensor | None = None
    solutions: Tensor | None = None


class Metric:
    """Subclasses set `needs` and define `add` and `result`; `state` holds tensors that are sums over images.

    needs: `features`, `logits` or `solutions` of a batch; `stored`: all features (num, d) float32, CPU, and those of the
    reference. num: images in the set; width: d, or the number of logits.
    """

    needs: str = "features"
    relative = False  # whether a distance is given in per cent of the reference's variance

    def __init__(self, num: int, width: int, reference: Reference | None, key: str = "", device: torch.device | str = "cpu"):
        self.num, self.reference, self.key = num, reference, key
        self.state: dict[str, Tensor] = {}

    def add(self, batch: Batch) -> None:
        """Add a batch to the sums."""

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        raise NotImplementedError
