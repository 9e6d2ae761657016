"""Numerical differentiation schemes of the student in t (Section 4.2). One file = one scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Compared(NamedTuple):
    """What the loss (11) needs of the student; both (B, C, H, W)."""

    x: Tensor           # state x_theta(z, t_i), where the teacher is asked
    prediction: Tensor  # x - t dx/dt, compared with D(x, t)


class Scheme(Protocol):
    order: int

    def times(self, i: Tensor, t: Tensor) -> Sequence[Tensor]:
        """i: (B,) grid indices, t: (N,) float64 grid -> the (B,) float64 times that F is needed at; the state's first."""
        ...

    def combine(self, F: Sequence[Tensor], times: Sequence[Tensor], z: Tensor, t_max: float) -> Compared:
        """F: the network's values (B, C, H, W) at `times`; z: (B, C, H, W) at T = t_max."""
        ...
