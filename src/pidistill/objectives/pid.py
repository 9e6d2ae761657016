"""Physics Informed Distillation: Algorithm 1 and Eq. (11)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.grid import Grid
from pidistill.objectives import Objective
from pidistill.plugins import build
from pidistill.schemes import Scheme
from pidistill.student import Student

Distance = Callable[[Tensor, Tensor], Tensor]


def pid_residual(student: Student, teacher: Denoiser, z: Tensor, i: Tensor, grid: Grid, scheme: Scheme,
                 labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both sides of Eq. (11). z: (B, C, H, W) at t = T; i: (B,) grid indices. Returns two (B, C, H, W)."""
    times = scheme.times(i, grid.t.to(i.device))
    n = len(times)
    # One call on n B samples instead of n calls on B: the same numbers, better use of the machine.
    F = student.F(z.repeat(n, *[1] * (z.ndim - 1)), torch.cat(list(times)), None if labels is None else labels.repeat(n))
    x, prediction = scheme.combine(F.chunk(n), times, z, student.t_max)
    with torch.no_grad():                                        # sg(.), ablated in Section 6.4
        target = teacher(x, times[0], labels)
    return prediction, target


class PID(Objective):
    """E_{i,z} d(x_i - t_i dx/dt, sg[D(x_i, t_i)]) with i uniform on the grid and z ~ N(0, T^2 I).

    scheme, distance: members of those families, by name or {"name": ..., options}.
    balance, floor: divide each sample's loss e by (sg(e) + floor)^balance. 0 is the paper's loss. Towards 1 all times
    and noises pull equally hard, however large their residual is (Geng et al., 2024, Eq. 24, use such weights).
    """

    needs = "noise"

    def __init__(self, student: Student, teacher: Denoiser, grid: Grid, *, scheme: Any = "upwind", distance: Any = "l2",
                 balance: float = 0.0, floor: float = 1e-3):
        super().__init__()
        if not 0 <= balance <= 1 or not floor > 0:
            raise PidistillError(f"objective.balance must be in 0-1 and objective.floor positive, got {balance} and {floor}")
        self.student, self.grid, self.balance, self.floor = student, grid, balance, floor
        self.frozen = [teacher]
        self.scheme: Scheme = build_part("schemes", scheme)
        self.distance: Distance = build_part("distances", distance)
        self.networks = {"student": student}

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        sample: dict[str, Any] = {"i": np.int64(rng.integers(self.grid.points))}
        if self.student.num_classes:
            sample["labels"] = np.int64(rng.integers(self.student.num_classes))
        return sample | {"z": rng.standard_normal(self.student.shape, dtype=np.float32) * np.float32(self.student.t_max)}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        prediction, target = pid_residual(self.student, self.frozen[0], batch["z"], batch["i"], self.grid, self.scheme,
                                          batch.get("labels"))
        e = self.distance(prediction, target)
        return e / (e.detach() + self.floor) ** self.balance if self.balance else e


def build_part(family: str, part: str | dict[str, Any]) -> Any:
    """A member from its name, or from a mapping with `name` and its options."""
    options = {"name": part} if isinstance(part, str) else dict(part)
    if "name" not in options:
        raise PidistillError(f"{family}: a mapping needs `name`, got {part}")
    return build(family, options.pop("name"), **options)
