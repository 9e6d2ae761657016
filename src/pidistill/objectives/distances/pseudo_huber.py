"""Pseudo-Huber distance: d(a, b) = sqrt(|a - b|^2 + k^2) - k.

Song and Dhariwal (2024), "Improved techniques for training consistency models", Eq. 7.
"""

from __future__ import annotations

import math

from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.objectives.distances.base import check_shapes


class PseudoHuber:
    """The distance is sqrt(|a - b|^2 + k^2) - k, (B, ...) and (B, ...) -> (B,), with k = c sqrt(elements of a sample).

    It is quadratic for r.m.s. differences below c and linear above. c: in units of the data, 0.00054 in that paper.
    """

    def __init__(self, *, c: float = 0.00054):
        if not c > 0:
            raise PidistillError(f"pseudo_huber: c must be positive, got {c}")
        self.c = c

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_shapes(prediction, target)
        difference = (prediction - target).flatten(1)
        k = self.c * math.sqrt(difference.shape[1])
        return (difference.square().sum(dim=1) + k**2).sqrt() - k
