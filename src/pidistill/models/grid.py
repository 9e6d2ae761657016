"""The time grid t_i = (T^(1/rho) + i/(N-1) (eps^(1/rho) - T^(1/rho)))^rho of Karras et al. (2022), Eq. (5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import home_of_float64

# Karras et al. (2022), Table 1. Used only where a teacher is made that says nothing else; all other code asks the teacher.
T_MIN, T_MAX, RHO, SIGMA_DATA = 0.002, 80.0, 7.0, 0.5


def karras_times(points: int, t_min: float, t_max: float, rho: float, times: Tensor | None = None) -> Tensor:
    """Compute t_i, i = 0 ... N - 1, of Eq. (5): (N,) float64, descending from T to eps exactly.

    points: N, at least 2.
    t_min, t_max: eps and T, in units of the data's scale.
    times: (K,) float64 ascending; each t_i is replaced by the nearest of them (in log t), and what repeats is dropped.
    """
    if points < 2:
        raise PidistillError(f"grid.points must be at least 2, got {points}")
    if not 0 < t_min < t_max:
        raise PidistillError(f"the noise range must satisfy 0 < t_min < t_max, got t_min={t_min}, t_max={t_max}")
    ramp = torch.arange(points, dtype=torch.float64) / (points - 1)
    t = (t_max ** (1 / rho) + ramp * (t_min ** (1 / rho) - t_max ** (1 / rho))) ** rho
    t[0], t[-1] = t_max, t_min  # the powers round: the boundary condition needs T itself
    return snap(t, times)


def snap(t: Tensor, times: Tensor | None) -> Tensor:
    """Replace each of t (N,), descending, by the nearest of `times` (K,), ascending, in log t; drop what repeats.

    Without `times` the teacher takes any noise level, and t stays as it is.
    """
    if times is None:
        return t
    nearest = (t.log()[:, None] - times.log()).abs().argmin(dim=1)
    return times[nearest.unique()].flip(0)


@dataclass(frozen=True)
class Grid:
    """The times that PID compares student and teacher at. t: (N,) float64, strictly descending from T to eps."""

    t: Tensor

    def __post_init__(self) -> None:
        if not bool((self.t[1:] < self.t[:-1]).all()) or float(self.t[-1]) <= 0:
            raise PidistillError("grid times must be positive and strictly descending")

    @property
    def points(self) -> int:
        """The number N of times."""
        return len(self.t)

    def place(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """Give the times and the indices i (B,) on one device: that of i, or the CPU where that has no float64."""
        home = home_of_float64(i.device)
        return self.t.to(home), i.to(home)

    def at(self, i: Tensor) -> Tensor:
        """Give the times of the indices i (B,), float64: on the device of i, or the CPU where that has no float64."""
        t, i = self.place(i)
        return t[i]
