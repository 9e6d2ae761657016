"""Consistency training without a teacher, with the improved recipe (Song and Dhariwal, 2024).

    L = E_{i,y,z} lambda(t_i) d( f(y + t_{i+1} z, t_{i+1}), sg[f(y + t_i z, t_i)] ),    lambda(t_i) = 1/(t_{i+1} - t_i)
    P(i) ~ erf((ln t_{i+1} - P_mean)/(sqrt 2 P_std)) - erf((ln t_i - P_mean)/(sqrt 2 P_std))
    N(k) = min(s0 2^floor(k/K'), s1) + 1,    K' = floor(K / (log2 floor(s1/s0) + 1))

with i in 1 ... N(k) - 1, eps = t_1 < ... < t_N = T the grid of Karras et al. (2022) of N(k) points, k the step of K, and d
the pseudo-Huber distance, c = 0.00054 (the paper's Table 1 and Section 3). It improves on Song et al. (2023), Algorithm 3.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import like
from pidistill.objectives._images import draw_image, require_images, take_run_steps
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup
from pidistill.objectives.consistency import Grids, check_consistency
from pidistill.objectives.distances.base import make_distance


def count_doubling_points(step: int, steps: int, s0: int, s1: int) -> int:
    """Compute N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(K / (log2 floor(s1/s0) + 1)).

    step: k, counted from 0. steps: K. s0, s1: intervals between times at the start, and at most.
    """
    period = max(1, math.floor(steps / (math.log2(s1 // s0) + 1)))
    return min(s0 * 2 ** min(step // period, 64), s1) + 1  # 64: beyond are only numbers that s1 cuts


def weigh_intervals(times: np.ndarray, p_mean: float, p_std: float) -> np.ndarray:
    """Compute how likely each interval of a grid is, (N - 1,): as likely as ln t ~ N(p_mean, p_std^2) falls in it.

    times: (N,), descending. Raises PidistillError where it falls in none.
    """
    erf = np.array([math.erf((math.log(t) - p_mean) / (math.sqrt(2) * p_std)) for t in times])
    weights = erf[:-1] - erf[1:]
    if not weights.sum() > 0:
        raise PidistillError(f"objective.p_mean={p_mean:g} and p_std={p_std:g} leave no noise level from {times[-1]:g} to "
                             f"{times[0]:g}")
    return weights / weights.sum()


class ConsistencyTraining(Objective):
    """The loss of an image y is d(f(y + t_{i+1} z, t_{i+1}), sg[f(y + t_i z, t_i)]) / (t_{i+1} - t_i), with one noise z.

    The teacher gives the shape, the noise range and, with `student.init=teacher`, the start; it is never called. Faithful:
    the loss and its weighting, the target without an average, the times' distribution and the doubling of N. Left out:
    dropout (0.3 in the paper, the same in both calls), which students here have none of, and the smaller scale of the
    network's time embedding, which is the network's.

    distance: a member of the family, by name or {"name": ..., options}.
    p_mean, p_std: of ln t, P_mean and P_std.
    weighting: `interval`, as above, or `none`.
    schedule: of N: `doubling`, as above, or `fixed`, grid.points; by the former the configuration's grid plays no part.
    s0, s1: of the doubling schedule.
    schedule_steps: K, its steps; by default the run's.
    flip: every other image, by chance, is mirrored left to right.
    """

    needs = "images"
    form = "consistency"

    @classmethod
    def stages(cls, config: Any) -> list[Any]:
        return [take_run_steps(config)]

    def __init__(self, setup: Setup, *, distance: Any = "pseudo_huber", p_mean: float = -1.1, p_std: float = 2.0,
                 weighting: Literal["interval", "none"] = "interval", schedule: Literal["doubling", "fixed"] = "doubling",
                 s0: int = 10, s1: int = 1280, schedule_steps: int = 400_000, flip: bool = False):
        check_consistency(setup)
        if not p_std > 0:
            raise PidistillError(f"objective.p_std must be above 0, got {p_std:g}")
        if not 1 <= s0 <= s1 or schedule_steps < 1:
            raise PidistillError("objective.s0 must be at least 1, s1 at least s0 and schedule_steps at least 1, got "
                                 f"{s0}, {s1} and {schedule_steps}")
        self.data, self.flip, self.weighting = require_images(setup, "consistency_training"), flip, weighting
        self.p_mean, self.p_std = p_mean, p_std
        self.schedule, self.s0, self.s1, self.schedule_steps = schedule, s0, s1, schedule_steps
        self.shape, self.conditional = setup.student.shape, setup.student.num_classes > 0
        self.grids = Grids(setup)
        weigh_intervals(self.grids.list_times(self.count_points(0)), p_mean, p_std)
        self.ends: dict[int, np.ndarray] = {}  # by N, where each interval ends of those that [0, 1) is split into
        member = make_distance(distance, self.shape)
        super().__init__({"student": setup.student}, {"distance": member})

    def phases(self) -> list[Phase]:
        return [Phase("consistency", ("student",), self.draw, self.loss)]

    def count_points(self, step: int) -> int:
        """Give N of a step."""
        if self.schedule == "fixed":
            return self.grids.fixed
        return count_doubling_points(step, self.schedule_steps, self.s0, self.s1)

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = draw_image(self.data, rng, self.conditional, self.flip)
        points = self.count_points(step)
        times = self.grids.list_times(points)
        if points not in self.ends:
            self.ends[points] = weigh_intervals(times, self.p_mean, self.p_std).cumsum()
        i = min(int(np.searchsorted(self.ends[points], rng.random(), side="right")), len(times) - 2)
        return sample | {"t": times[i], "u": times[i + 1], "z": rng.standard_normal(self.shape, dtype=np.float32)}

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        y, z, t, u, labels = batch["y"], batch["z"], batch["t"], batch["u"], batch.get("labels")
        student = self.networks["student"]
        with torch.no_grad():
            target = student(y + like(u, y) * z, u, labels)
        d = self.calls["distance"](student(y + like(t, y) * z, t, labels), target)
        return d / (t - u).to(d) if self.weighting == "interval" else d

    def times(self, batch: Batch) -> Tensor:
        return batch["t"]
