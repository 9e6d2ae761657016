"""BOOT (Gu et al., 2023): a student that is bootstrapped along the teacher's Signal-ODE, from noise alone.

The signal of a state is y_t = (x_t - sigma_t n)/alpha_t. On the teacher's trajectories (the Signal-ODE), and in one step of
DDIM from t to s < t, with lambda = -ln(alpha/sigma),

    dy/dt = lambda' (y - D(x_t, t)),    y_s = (1 - e^(lambda_s - lambda_t)) D(x_t, t) + e^(lambda_s - lambda_t) y_t.

Here x = image + t n, so alpha = 1, sigma = t, n = z/T and e^(lambda_s - lambda_t) = s/t: x_t = y_t + (t/T) z, and a step of
DDIM is one of Euler's in t. The student gives y(z, t). Its losses are, with neighbouring times s < t,

    bootstrapping   E |y(z, s) - sg[y_t + (1 - s/t) (D(x_t, t) - y_t)]|^2 / (1 - s/t)^2,    y_t = sg y(z, t)
    boundary        E |y(z, T) - D(z, T)|^2.

The paper divides the former by the square of its step, so that it does not vanish with it; lambda' delta is 1 - s/t to
first order. Divided so, both sides are images, which any distance compares:

    y_t + (y(z, s) - y_t)/(1 - s/t)    and    sg D(x_t, t).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast
from pidistill.core.tensors import like
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import make_distance


class BOOT(Objective):
    """The loss of a noise z is that of bootstrapping from one time to the next, and `boundary` times that at T, both above.

    It needs noise, and the teacher's answers without gradients: a black box will do.

    boundary: beta, the weight of the boundary loss; 0 leaves it out, and the first time without a teacher.
    step: points of the grid from t to s. Times below T that are nearer to it are reached from T, so that each is learnt.
    solver: of the target: `euler`, as above, or `heun`, which asks the teacher at both times.
    distance: a member of that family, by name or {"name": ..., options}.
    teacher_precision: as of `PID`.

    Faithful: Signal-ODE, both losses, their weights, stop-gradient. Times are those of the grid, in place of uniform ones of
    the diffusion's own clock: a teacher may know no others. Left out: guidance of text-to-image teachers, beyond the
    teacher's own, and training that begins with the times near T alone.
    """

    form = "signal"

    def __init__(self, setup: Setup, *, boundary: float = 0.1, step: int = 1,
                 solver: Literal["euler", "heun"] = "euler", distance: Any = "l2",
                 teacher_precision: Autocast | None = None):
        student, self.grid = setup.student, setup.grid
        if not 0 <= boundary < math.inf:
            raise PidistillError(f"objective.boundary must be 0 or more, got {boundary:g}")
        if not 1 <= step < self.grid.points:
            raise PidistillError(f"objective.step must be from 1 to {self.grid.points - 1}, the grid's points but one, "
                                 f"got {step}")
        if student.form != self.form:
            raise PidistillError(f"BOOT trains a student of the form signal; this one is of the form {student.form}")
        self.boundary, self.step, self.solve = boundary, step, {"euler": self.ask, "heun": self.ask_twice}[solver]
        self.shape, self.num_classes, self.t_max = student.shape, student.num_classes, student.t_max
        self.teacher_precision = teacher_precision
        member = make_distance(distance, self.shape)
        super().__init__({"student": student}, {"teacher": setup.teacher, "distance": member})

    def phases(self) -> list[Phase]:
        return [Phase("boot", ("student",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        """Draw the noise z at T, a label, and the index j of s in the grid; t is `step` points before, or T."""
        sample: Sample = {"j": np.int64(1 + rng.integers(self.grid.points - 1))}
        if self.num_classes:
            sample["labels"] = np.int64(rng.integers(self.num_classes))
        return sample | {"z": rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.t_max)}

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        z, j, labels = batch["z"], batch["j"], batch.get("labels")
        student: Any = self.networks["student"]
        s, t = self.grid.at(j), self.grid.at((j - self.step).clamp(min=0))
        with torch.no_grad():
            y_t = student.F(z, t, labels)
            target = self.solve(y_t, z, t, s, labels)
        start = torch.full_like(s, self.t_max)
        times = [s, start] if self.boundary else [s]  # one call on all of them: the same numbers, better use of the machine
        y, *first = student.F(z.repeat(len(times), *[1] * (z.ndim - 1)), torch.cat(times),
                              None if labels is None else labels.repeat(len(times))).chunk(len(times))
        loss: Tensor = self.calls["distance"](y_t + (y - y_t) / like(1 - s / t, z), target)
        if self.boundary:
            with torch.no_grad():
                D = self.call_teacher(z, start, labels)
            loss = loss + self.boundary * self.calls["distance"](first[0], D)
        return loss

    def ask(self, y: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Compute D(x_t, t), (B, C, H, W), at the state whose signal is y (B, C, H, W)."""
        return self.call_teacher(y + like(t / self.t_max, z) * z, t, labels)

    def ask_twice(self, y: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Compute what stands for D in a step of Heun's method, y_s = y + (s - t)(k_1 + k_2)/2 with k = (y - D)/t."""
        D = self.ask(y, z, t, s, labels)
        next_y = y + like(1 - s / t, z) * (D - y)
        change = next_y - self.ask(next_y, z, s, t, labels)
        return y - (y - D + like(t / s, z) * change) / 2

    def times(self, batch: Batch) -> Tensor:
        return self.grid.at((batch["j"] - self.step).clamp(min=0))
