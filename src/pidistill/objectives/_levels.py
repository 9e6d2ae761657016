"""The noise levels t at which what a student draws is compared with what its teacher draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from pidistill.core.errors import PidistillError
from pidistill.objectives.base import Setup


class Levels(ABC):
    """Draws noise levels that the teacher knows, between two bounds.

    setup: of the distillation.
    low, high: of the levels; by default, and at most, all that the teacher knows.
    """

    def __init__(self, setup: Setup, low: float | None = None, high: float | None = None):
        times = setup.grid.t if setup.teacher.times is None else setup.teacher.times
        self.known = None if setup.teacher.times is None else setup.teacher.times.log().numpy()
        self.low, self.high = max(low or 0, setup.student.t_min), min(high or math.inf, float(times.max()))

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> float:
        """Draw a noise level t."""

    def place(self, ln_t: float) -> float:
        """Give the level that is nearest to one, by its logarithm, of those within the bounds that the teacher knows."""
        ln_t = np.clip(ln_t, math.log(self.low), math.log(self.high))
        return math.exp(ln_t if self.known is None else self.known[np.abs(self.known - ln_t).argmin()])


class GridLevels(Levels):
    """Levels that are uniform among the grid's times. Raises PidistillError where the bounds leave none of them."""

    def __init__(self, setup: Setup, low: float | None = None, high: float | None = None):
        super().__init__(setup, low, high)
        self.times = [float(t) for t in setup.grid.t if self.low <= t <= self.high]
        if not self.times:
            raise PidistillError(f"objective.level_min={low} and level_max={high} leave no times of the grid")

    def draw(self, rng: np.random.Generator) -> float:
        return self.times[rng.integers(len(self.times))]


class LognormalLevels(Levels):
    """Levels with ln t ~ N(p_mean, p_std^2), as in EDM's training (Karras et al., 2022, Table 1)."""

    def __init__(self, setup: Setup, p_mean: float, p_std: float, low: float | None = None, high: float | None = None):
        super().__init__(setup, low, high)
        self.p_mean, self.p_std = p_mean, p_std

    def draw(self, rng: np.random.Generator) -> float:
        return self.place(self.p_mean + self.p_std * rng.standard_normal())


class KarrasLevels(Levels):
    """Levels that are uniform in Karras's time, t = (eps^(1/rho) + u (T^(1/rho) - eps^(1/rho)))^rho, u ~ U(0, reach).

    It is Eq. (5) of Karras et al. (2022), whose i/(N - 1) is 1 - u.

    reach: above 0, at most 1.
    """

    def __init__(self, setup: Setup, reach: float):
        super().__init__(setup)
        self.reach, self.rho = reach, setup.student.rho
        self.ends = setup.student.t_min ** (1 / self.rho), setup.student.t_max ** (1 / self.rho)

    def draw(self, rng: np.random.Generator) -> float:
        first, last = self.ends
        return self.place(self.rho * math.log(first + self.reach * rng.random() * (last - first)))
