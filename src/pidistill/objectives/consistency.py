"""Consistency Distillation (Song, Dhariwal, Chen and Sutskever, 2023, Algorithm 2).

    x = y + t_{n+1} z,    x^ = x + (t_n - t_{n+1}) Phi(x, t_{n+1})      y an image, Phi a step of the teacher's ODE (Eq. 6)
    L = E_{n,y,z} lambda(t_n) d( f(x, t_{n+1}), f-(x^, t_n) ),    f- <- mu f- + (1 - mu) f                      (Eq. 7, 8)

with n uniform in 1 ... N - 1, eps = t_1 < ... < t_N = T the grid of Karras et al. (2022), and lambda = 1.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import like
from pidistill.models.grid import karras_times
from pidistill.objectives._images import draw_image, require_images, take_run_steps
from pidistill.objectives._ode_steps import SOLVERS
from pidistill.objectives.base import Batch, Follower, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import make_distance


def count_adaptive_points(step: int, steps: int, s0: int, s1: int) -> int:
    """Compute N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (Song et al., 2023, Appendix C).

    step: k, counted from 0; after K it stays at N(K).
    steps: K.
    s0, s1: N at the start, and one less than N at the end.
    """
    share = min(step, steps) / steps
    return math.ceil(math.sqrt(share * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


class Consistency(Objective):
    """The loss of an image y is d(f(x, t_{n+1}), f-(x^, t_n)), where the teacher has taken x at t_{n+1} to x^ at t_n.

    Faithful: the loss, the grid, the target network f-, the solvers, and the schedules of N and mu. Distances are those of
    the family, so `l2` is the mean square where the paper has the sum. Left out: continuous time (Appendix B), which needs
    forward derivatives of the networks, and weightings other than the paper's 1.

    solver: of the teacher's step, `heun` as in the paper's experiments, or `euler` as in its Algorithm 2.
    mu: decay rate of the target; of the adaptive schedule that at its start, mu0. The paper has 0 for CIFAR-10 and 0.95 for
        larger images.
    distance: a member of the family, by name or {"name": ..., options}; the paper's best is `lpips`.
    schedule: `fixed`, N = grid.points (18 in the paper for CIFAR-10), or `adaptive`, N(k) of `count_adaptive_points` and
        mu(k) = exp(s0 ln mu0 / N(k)), k the step; the grid of the configuration then plays no part.
    s0, s1: of the adaptive schedule.
    schedule_steps: K, its steps; by default the run's.
    flip: every other image, by chance, is mirrored left to right.
    """

    needs = "images"
    form = "consistency"

    @classmethod
    def stages(cls, config: Any) -> list[Any]:
        return [take_run_steps(config) if config.objective.get("schedule") == "adaptive" else config]

    def __init__(self, setup: Setup, *, solver: Literal["euler", "heun"] = "heun", mu: float = 0.95, distance: Any = "l2",
                 schedule: Literal["fixed", "adaptive"] = "fixed", s0: int = 2, s1: int = 150,
                 schedule_steps: int = 800_000, flip: bool = False):
        check_consistency(setup)
        if not 0 <= mu < 1 or (schedule == "adaptive" and mu == 0):
            raise PidistillError(f"objective.mu must be 0 to 1, below 1, and above 0 for the adaptive schedule, got {mu:g}")
        if not 2 <= s0 <= s1 or schedule_steps < 1:
            raise PidistillError("objective.s0 must be at least 2, s1 at least s0 and schedule_steps at least 1, got "
                                 f"{s0}, {s1} and {schedule_steps}")
        self.data, self.flip, self.mu, self.solve = require_images(setup, "consistency"), flip, mu, SOLVERS[solver]
        self.schedule, self.s0, self.s1, self.schedule_steps = schedule, s0, s1, schedule_steps
        self.shape, self.conditional = setup.student.shape, setup.student.num_classes > 0
        self.grids = Grids(setup)
        member = make_distance(distance, self.shape)
        super().__init__({"student": setup.student}, {"teacher": setup.teacher, "distance": member},
                         {"target": Follower("student", self.find_rate)})

    def phases(self) -> list[Phase]:
        return [Phase("consistency", ("student",), self.draw, self.loss)]

    def count_points(self, step: int) -> int:
        """Give N of a step."""
        if self.schedule == "fixed":
            return self.grids.fixed
        return count_adaptive_points(step, self.schedule_steps, self.s0, self.s1)

    def find_rate(self, step: int) -> float:
        """Give mu of a step."""
        return self.mu if self.schedule == "fixed" else math.exp(self.s0 * math.log(self.mu) / self.count_points(step))

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = draw_image(self.data, rng, self.conditional, self.flip)
        times = self.grids.list_times(self.count_points(step))
        n = int(rng.integers(len(times) - 1))
        return sample | {"t": times[n], "u": times[n + 1], "z": rng.standard_normal(self.shape, dtype=np.float32)}

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        y, t, u, labels = batch["y"], batch["t"], batch["u"], batch.get("labels")
        x = y + like(t, y) * batch["z"]
        with torch.no_grad():
            target = self.copies["target"](self.solve(self.calls["teacher"], x, t, u, labels), u, labels)
        return self.calls["distance"](self.networks["student"](x, t, labels), target)

    def times(self, batch: Batch) -> Tensor:
        return batch["t"]


class Grids:
    """The Karras grids of several numbers of points, which are made when they are first asked for.

    fixed: N of the configuration's own.
    """

    def __init__(self, setup: Setup):
        student = setup.student
        self.facts, self.known = (student.t_min, student.t_max, student.rho), setup.teacher.times
        self.fixed = setup.grid.points
        self.made = {self.fixed: setup.grid.t.double().numpy()}

    def list_times(self, points: int) -> np.ndarray:
        """List the times of N points, (N,) float64, from T down to eps; fewer where the teacher knows fewer."""
        if points not in self.made:
            with torch.device("cpu"):  # a dry run makes objectives on the meta device
                self.made[points] = karras_times(points, *self.facts, self.known).numpy()
        return self.made[points]


def check_consistency(setup: Setup) -> None:
    """Refuse a student that is no consistency function. Raises PidistillError."""
    if setup.student.form != "consistency":
        raise PidistillError(f"consistency models train f(x, t), of the form consistency; the student's form is "
                             f"{setup.student.form}")
