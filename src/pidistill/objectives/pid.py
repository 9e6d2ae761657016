"""Physics Informed Distillation: Algorithm 1 and Eq. (11).

L = E_{i,z} d(x_i - t_i dx/dt, sg[D(x_i, t_i)]), i uniform on the grid, z ~ N(0, T^2 I), x_i the student's state (Eq. 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast
from pidistill.core.registry import build_from_config
from pidistill.models.grid import Grid
from pidistill.models.student import Student
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import make_distance
from pidistill.objectives.schemes.base import Scheme


def pid_residual(student: Student, teacher: Callable[..., Tensor], z: Tensor, i: Tensor, grid: Grid, scheme: Scheme,
                 labels: Tensor | None = None, stop_gradient: bool = True) -> tuple[Tensor, Tensor]:
    """Compute both sides of Eq. (11), the student's prediction and the teacher's target, each (B, C, H, W).

    z: (B, C, H, W), the noise at t = T.
    i: (B,), indices of `grid`.
    scheme: differentiates the student in t.
    labels: (B,) int64, or None.
    stop_gradient: keeps the gradient out of the target.
    """
    def F(*times: Tensor) -> tuple[Tensor, ...]:
        # One call on n B samples instead of n calls on B: the same numbers, better use of the machine.
        n = len(times)
        y = None if labels is None else labels.repeat(n)
        return student.F(z.repeat(n, *[1] * (z.ndim - 1)), torch.cat(times), y).chunk(n)

    times, i = grid.place(i)
    x, t, prediction = scheme(F, z, i, times, student.t_max)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):  # sg(.), ablated in Section 6.4
        target = teacher(x, t, labels)
    if not prediction.shape == target.shape == z.shape:
        raise PidistillError(f"for noise of {tuple(z.shape)} the student's side of Eq. (11) has the shape "
                             f"{tuple(prediction.shape)} and the teacher's {tuple(target.shape)}; all must be equal")
    return prediction, target


class PID(Objective):
    """PID's loss of a noise z at a time t_i is d(x_i - t_i dx/dt, sg[D(x_i, t_i)]).

    scheme, distance: members of those families, by name or {"name": ..., options}.
    stop_gradient: False lets the gradient through the teacher, which must be differentiable (Section 6.4).
    balance, floor: divide each sample's loss e by (sg(e) + floor)^balance. 0 is the paper's loss. Towards 1 all times
        and noises pull equally hard, however large their residual is (Geng et al., 2024, Eq. 24, use such weights).
    teacher_precision: `bf16` or `fp16` calls the teacher under autocast, `fp32` without; by default as the student.
    """

    def __init__(self, setup: Setup, *, scheme: Any = "upwind", distance: Any = "l2", stop_gradient: bool = True,
                 balance: float = 0.0, floor: float = 1e-3, teacher_precision: Autocast | None = None):
        if not 0 <= balance <= 1 or not floor > 0:
            raise PidistillError(f"objective.balance must be in 0-1 and objective.floor positive, got {balance} and {floor}")
        if setup.student.form != "trajectory":
            raise PidistillError(f"PID trains the trajectory of Eq. (7); the student's form is {setup.student.form}")
        self.grid, self.balance, self.floor = setup.grid, balance, floor
        self.stop_gradient, self.teacher_precision = stop_gradient, teacher_precision
        self.shape, self.num_classes, self.t_max = setup.student.shape, setup.student.num_classes, setup.student.t_max
        self.scheme: Scheme = build_from_config("schemes", scheme)
        check_setup(self.scheme, setup)
        member = make_distance(distance, self.shape)
        super().__init__({"student": setup.student}, {"teacher": setup.teacher, "distance": member})

    @classmethod
    def asks_for_gradient(cls, options: Mapping[str, Any]) -> bool:
        return not options.get("stop_gradient", True)

    def phases(self) -> list[Phase]:
        return [Phase("pid", ("student",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample: Sample = {"i": np.int64(rng.integers(self.grid.points))}
        if self.num_classes:
            sample["labels"] = np.int64(rng.integers(self.num_classes))
        return sample | {"z": rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.t_max)}

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        return self.compare(*self.compute_sides(batch))

    def compute_sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute both sides of Eq. (11), each (B, C, H, W)."""
        student: Any = self.networks["student"]
        prediction, target = pid_residual(student, self.call_teacher, batch["z"], batch["i"], self.grid, self.scheme,
                                          batch.get("labels"), self.stop_gradient)
        if not self.stop_gradient and torch.is_grad_enabled() and not target.requires_grad:
            raise PidistillError("objective.stop_gradient=false needs a teacher that can be differentiated; this one gives "
                                 "no gradient")
        return prediction, target

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of every sample, (B,), from both sides of Eq. (11)."""
        e = self.calls["distance"](prediction, target)
        return e / (e.detach() + self.floor) ** self.balance if self.balance else e

    def times(self, batch: Batch) -> Tensor:
        return self.grid.at(batch["i"])


def check_setup(scheme: Scheme, setup: Setup) -> None:
    """Refuse what a scheme cannot do: too few grid points, blocks that are computed again."""
    name = type(scheme).__name__.lower()
    if missing := [key for key in ("order", "points", "recomputable") if not hasattr(scheme, key)]:
        raise PidistillError(f"the scheme {name} does not say its `{missing[0]}` (objectives/schemes/base.py)")
    if setup.grid.points < scheme.points:
        raise PidistillError(f"the scheme {name} needs at least {scheme.points} grid points, "
                             f"got grid.points={setup.grid.points}")
    if setup.recompute and not scheme.recomputable:
        raise PidistillError(f"train.recompute=true does not go with objective.scheme={name}, whose derivative PyTorch "
                             "cannot compute again; set train.microbatch=auto instead")
