"""Numerical differentiation schemes of the student in t (Section 4.2).

Every scheme compares x - t dx/dt with the teacher's D(x, t). With x from Eq. (7) and any rule for the derivative that is
exact for straight lines, z, of magnitude T, cancels on paper: what remains are differences of F, and no scheme below
ever subtracts two states. Weights are formed in float64, since neighbouring times are close; where the device of z has
none, times and indices are on the CPU, and `like(weight, z)` brings weights to z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

# F(t, u, ...) -> the raw network's output at each of the (B,) float64 times, (B, C, H, W) each, in one call of the network.
Network = Callable[..., tuple[Tensor, ...]]


class StudentSide(NamedTuple):
    """The student's side is what the loss (11) needs of it, for the same (B,) times; x and prediction are (B, C, H, W)."""

    x: Tensor           # state, where the teacher is called
    t: Tensor           # (B,) float64, its time
    prediction: Tensor  # x - t dx/dt, compared with D(x, t)


class Scheme(Protocol):
    """A scheme computes the student's side of Eq. (11) from the network's outputs at a time and at its neighbours."""

    order: float        # of the error of x - t dx/dt in 1/N, on a smooth trajectory
    points: int         # grid points that it takes at least
    recomputable: bool  # whether blocks may be computed again for its backward pass

    def __call__(self, F: Network, z: Tensor, i: Tensor, t: Tensor, t_max: float) -> StudentSide:
        """Compute state, time and prediction at grid points.

        F: the student's network with its noise and labels set.
        z: (B, C, H, W), the noise at T.
        i: (B,), grid indices.
        t: (N,) float64, the grid, descending.
        t_max: T.
        """
        ...


def choose_interval(i: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Choose t_i and t_{i+1}, each (B,) float64; at i = N-1 t_{N-2} stands in, as Eq. (10) has no next point at eps."""
    last = len(t) - 1
    return t[i], t[(i + 1).where(i < last, i - 1)]
