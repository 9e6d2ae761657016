"""Diffusion model sampling with a neural operator (DSNO), Zheng et al. (2023): the whole trajectory in one network call.

    L = E_z sum_m w_m d( a_m x_theta(z, t_m), a_m x(t_m) ),    a_m = 1 / sqrt(1 + t_m^2),    sum_m w_m = 1

x(t_1), ..., x(t_M) are the teacher's states on its way from z, which the pairs hold; all x_theta(z, t_m) come out of one
call of a network whose layers mix the M times in Fourier space (`nets/parts/times.py`). a_m x is the state in the paper's
variance-preserving coordinates, where it is an image at t = 0 and unit noise at T; in ours its size grows as t.

Faithful: the architecture's temporal layers; the loss, L1 or LPIPS of the states; w_m, as the paper's published code has it
for CIFAR-10: max(1, 1/t_m), the root of the signal-to-noise ratio, 10^4 at most, here divided by their sum. Other: the
student's states are Eq. (7) of PID, whose F begins as the teacher's network does; the times are evenly chosen ones of the
pairs' sampler, on the teacher's grid, in place of uniform or quadratic ones of a VP schedule. Left out: padding of the M
times (Fourier continuation), which the published runs do not use either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build_from_config
from pidistill.files.image_set import ImageSet
from pidistill.files.pairs import Pairs
from pidistill.models.denoiser import Denoiser
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import Distance

LARGEST_WEIGHT = 1e4  # of a weight, before all are divided by their sum
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "snr": lambda t: (1 / t).clamp(1, LARGEST_WEIGHT),
    "uniform": torch.ones_like}


class DSNO(Objective):
    """The loss of a noise z is the mean distance of the M states of its trajectory from the teacher's.

    distance: a member of that family, by name or {"name": ..., options}; it compares every state, in VP coordinates.
    weighting: of the times, `snr` or `uniform`.

    The student's last time is eps, and stands for the recorded solution at 0. `distance/image`, in metrics, is its distance.
    Raises PidistillError for a student of another form or other times than the pairs have.
    """

    needs = "trajectories"
    form = "operator"

    def __init__(self, setup: Setup, *, distance: Any = "l1", weighting: Literal["snr", "uniform"] = "snr"):
        student = setup.student
        self.data = take_trajectories(setup.data)
        times = choose_student_times(self.data, setup.teacher)
        if student.form != self.form or student.times != times:
            raise PidistillError(f"dsno trains an operator whose states are at {', '.join(f'{t:.3g}' for t in times)}; the "
                                 f"student is of the form {student.form}, at {student.times or 'no times of its own'}")
        t = torch.tensor(times, dtype=torch.float64, device="cpu")
        weights = WEIGHTINGS[weighting](t)
        self.scales: list[float] = (1 / (1 + t**2).sqrt()).tolist()
        self.weights: list[float] = (weights / weights.sum()).tolist()
        member: Distance = build_from_config("distances", distance)
        if hasattr(member, "check"):
            member.check(student.shape)
        super().__init__({"student": student}, {"distance": member})

    @classmethod
    def plan_student(cls, teacher: Denoiser, options: Mapping[str, Any], data: ImageSet | None) -> dict[str, Any]:
        pairs = take_trajectories(data)
        return {"form": cls.form, "times": choose_student_times(pairs, teacher),
                "extension": {"temporal": len(pairs.times)}}

    def phases(self) -> list[Phase]:
        return [Phase("dsno", ("student",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = self.data.sample(int(rng.integers(len(self.data))))
        sample.pop("y")  # the last of the states
        return sample

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        student: Any = self.networks["student"]
        states = student.list_states(batch["z"], batch.get("labels"))  # (B, M, C, H, W), as the teacher's
        B, M = states.shape[:2]
        a = states.new_tensor(self.scales).reshape(M, *[1] * (states.ndim - 2))
        e = self.calls["distance"]((a * states).flatten(0, 1), (a * batch["states"]).flatten(0, 1)).unflatten(0, (B, M))
        self.note("distance/image", e[:, -1])
        return (e * e.new_tensor(self.weights)).sum(dim=1)


def take_trajectories(data: ImageSet | None) -> Pairs:
    """Take data as pairs that hold states of trajectories. Raises PidistillError for others."""
    if not isinstance(data, Pairs) or not data.times:
        raise PidistillError("dsno needs pairs with states between noise and image: pairs.trajectory=4, say")
    return data


def choose_student_times(pairs: Pairs, teacher: Denoiser) -> tuple[float, ...]:
    """Choose the times of the student's states, those of the pairs with eps in the place of 0, (M,).

    The network is told ln t. Raises PidistillError for pairs that have a state at eps, or below, beside the solution.
    """
    times = (*pairs.times[:-1], teacher.t_min)
    if any(t <= u * (1 + 1e-3) for t, u in pairwise(times)):
        raise PidistillError(f"dsno: the states at {pairs.times[-2]:.3g} and 0 are one to the student, whose last time is "
                             f"{teacher.t_min:.3g}; keep fewer than {len(times)} with pairs.trajectory, or take a sampler "
                             "of more steps")
    return times
