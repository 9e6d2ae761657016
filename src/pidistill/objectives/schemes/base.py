"""Numerical differentiation schemes of the student in t (Section 4.2). One file = one scheme.

Every scheme compares x - t dx/dt with the teacher's D(x, t). With x from Eq. (7) and any rule for the derivative that is
exact for straight lines, z, of magnitude T, cancels on paper: what remains are differences of F, and no scheme below
ever subtracts two states. Weights are formed in float64, since neighbouring times are close.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

# F(t, u, ...) -> the student's raw network output at each of the (B,) float64 times, (B, C, H, W), in one network call.
Network = Callable[..., tuple[Tensor, ...]]


class Compared(NamedTuple):
    """What the loss (11) needs of the student, for the same (B,) times; x and prediction are (B, C, H, W)."""

    x: Tensor           # state, where the teacher is asked
    t: Tensor           # (B,) float64, its time
    prediction: Tensor  # x - t dx/dt, compared with D(x, t)


class Scheme(Protocol):
    order: float  # of the error of x - t dx/dt in 1/N, on a smooth trajectory
    points: int   # grid points that it takes at least

    def __call__(self, F: Network, z: Tensor, i: Tensor, t: Tensor, t_max: float) -> Compared:
        """z: (B, C, H, W) at T = t_max, i: (B,) grid indices, t: (N,) float64 grid."""
        ...


def interval(i: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(t_i, t_{i+1}), each (B,) float64; at i = N-1 the last interval backwards: Eq. (10) has no next point at eps."""
    last = len(t) - 1
    return t[i], t[(i + 1).where(i < last, i - 1)]
