"""Physics Informed Distillation: Algorithm 1 and Eq. (11).

L = E_{i,z} d(x_i - t_i dx/dt, sg[D(x_i, t_i)]), i uniform on the grid, z ~ N(0, T^2 I), x_i the student's state (Eq. 7).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast, autocast
from pidistill.core.registry import build_from_config
from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import Grid
from pidistill.models.student import Student
from pidistill.objectives.base import Objective
from pidistill.objectives.distances.base import Distance
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

    x, t, prediction = scheme(F, z, i, grid.t.to(i.device), student.t_max)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):  # sg(.), ablated in Section 6.4
        target = teacher(x, t, labels)
    return prediction, target


class PID(Objective):
    """PID's loss of a noise z at a time t_i is d(x_i - t_i dx/dt, sg[D(x_i, t_i)]).

    scheme, distance: members of those families, by name or {"name": ..., options}.
    stop_gradient: False lets the gradient through the teacher, which must be differentiable (Section 6.4).
    balance, floor: divide each sample's loss e by (sg(e) + floor)^balance. 0 is the paper's loss. Towards 1 all times
        and noises pull equally hard, however large their residual is (Geng et al., 2024, Eq. 24, use such weights).
    teacher_precision: `bf16` or `fp16` calls the teacher under autocast, `fp32` without; by default as the student.
    """

    needs = "noise"

    def __init__(self, student: Student, teacher: Denoiser, grid: Grid, *, scheme: Any = "upwind", distance: Any = "l2",
                 stop_gradient: bool = True, balance: float = 0.0, floor: float = 1e-3,
                 teacher_precision: Autocast | None = None):
        super().__init__()
        if not 0 <= balance <= 1 or not floor > 0:
            raise PidistillError(f"objective.balance must be in 0-1 and objective.floor positive, got {balance} and {floor}")
        self.student, self.grid, self.balance, self.floor = student, grid, balance, floor
        self.stop_gradient, self.teacher_precision = stop_gradient, teacher_precision
        self.scheme: Scheme = build_from_config("schemes", scheme)
        if grid.points < self.scheme.points:
            raise PidistillError(f"the scheme {type(self.scheme).__name__.lower()} needs at least {self.scheme.points} grid "
                                 f"points, got grid.points={grid.points}")
        member = build_from_config("distances", distance)
        self.distance: Distance
        self.teacher: Callable[..., Tensor]
        object.__setattr__(self, "distance", member)  # not as a submodule: nothing of it is trained, saved or synchronised
        if hasattr(member, "check"):
            member.check(student.shape)
        object.__setattr__(self, "teacher", teacher)  # likewise; `compile_networks` replaces both, and nobody else's
        self.networks = {"student": student}
        self.frozen = [teacher, *([member] if isinstance(member, nn.Module) else [])]

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        sample: dict[str, Any] = {"i": np.int64(rng.integers(self.grid.points))}
        if self.student.num_classes:
            sample["labels"] = np.int64(rng.integers(self.student.num_classes))
        return sample | {"z": rng.standard_normal(self.student.shape, dtype=np.float32) * np.float32(self.student.t_max)}

    def call_teacher(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the teacher's D(x, t), (B, C, H, W), in the teacher's precision."""
        if self.teacher_precision is None:
            return self.teacher(x, t, labels)
        with autocast(self.teacher_precision, x.device):
            return self.teacher(x, t, labels)

    def compile_networks(self, compiler: Callable[..., Any]) -> None:
        super().compile_networks(compiler)
        for name in ("teacher", "distance"):
            module = getattr(self, name)
            object.__setattr__(self, name, compiler(functools.partial(call_module, module), what=f"the {name}"))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        prediction, target = pid_residual(self.student, self.call_teacher, batch["z"], batch["i"], self.grid, self.scheme,
                                          batch.get("labels"), self.stop_gradient)
        if not self.stop_gradient and torch.is_grad_enabled() and not target.requires_grad:
            raise PidistillError("objective.stop_gradient=false needs a teacher that can be differentiated; this one gives "
                                 "no gradient")
        e = self.distance(prediction, target)
        return e / (e.detach() + self.floor) ** self.balance if self.balance else e

    def times(self, batch: dict[str, Tensor]) -> Tensor:
        return self.grid.t.to(batch["i"].device)[batch["i"]]


def call_module(module: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a module, as a function of its own to compile: previews and evaluations, with other shapes, call it as it is."""
    return module(*arguments)
