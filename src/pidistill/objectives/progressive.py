"""Progressive Distillation (Salimans & Ho, 2022, Algorithm 2): one step of the student's DDIM for two of its teacher's.

A student of N steps goes between t_0 = T > t_2 > ... > t_2N = 0, its teacher between t_0, t_1, ..., t_2N. From x = y + t n,
y an image, n ~ N(0, I), with t, t', t'' = t_2i, t_2i+1, t_2i+2 the teacher takes the steps

    x' = D(x, t) + (t'/t) (x - D(x, t)),    x'' = D(x', t') + (t''/t') (x' - D(x', t')),

and the student's one step arrives at x'' if its denoised image is x~, to which it is fitted:

    x~ = (x'' - (t''/t) x) / (1 - t''/t),    L = E_{y,n,i} w(t) |x~ - D_theta(x, t)|^2.

The paper's z = alpha x, sigma = alpha t, alpha = (1 + t^2)^-1/2 make the same of its lines 8 to 12. Then the student is the
teacher, N is halved, and so on down to 1; every stage starts from the student before it.

w is one of Section 4, of the signal-to-noise ratio alpha^2/sigma^2 = 1/t^2 of images in [-1, 1], whatever sigma_data is:
`truncated_snr` is max(1/t^2, 1), and `snr_plus_one`, 1 + 1/t^2, makes L the mean square of the difference in
v = alpha n - sigma x, the v-form. Whether the network itself puts out x or v is the teacher's preconditioning.

As there: the targets, the weights, the start, the halving, and the rate that decays in every stage (`optimizer.decay`; there
linearly, here as a cosine). Left out: networks that put out x and eps at once. The times are EDM's by default; of `cosine`
alpha = cos(pi u/2), t = tan(pi u/2), u is even from that of T to that of eps, with 0 after it, where the paper has u = 0 to
1, clipped at t = e^10, a noise level that EDM's networks do not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import suggest_choices
from pidistill.core.tensors import cast_like, home_of_float64, like
from pidistill.files.image_set import ImageSet
from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import karras_times, snap
from pidistill.objectives._images import draw_image, require_images
from pidistill.objectives._regression import SUCCESSION, check_denoiser
from pidistill.objectives._stages import change
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import make_distance

FIRST_STEPS, MOST_HALVED = 16, 8192  # of the first student
HalvedSpacing = Literal["karras", "cosine"]


class Progressive(Objective):
    """The loss of an image y, a noise n and the i-th of a student's times is w(t) d(D(x, t), x~), x = y + t n.

    A distillation consists of the stages 1-progressive, 2-progressive, ...: students of `steps`, steps/2, ..., 1 steps. Each
    takes `train.steps` and can be drawn from by itself, `sample RUN/2-progressive --steps K`.

    steps: of the first student, a power of two; its teacher is the run's, and takes twice as many.
    student_steps: the student's own, which makes it a single run. Its times are every second, fourth, ... of the first's.
    times: `karras`, as those of samplers, or `cosine`, the paper's.
    weighting: w, as above.
    distance: d, a member of that family; the paper's is `l2`.
    flip: every other image, by chance, is mirrored left to right.
    last_factor: the stages of 2 steps and of 1 take so many times `train.steps`. The paper gave them twice.
    """

    needs = "images"
    form = "denoiser"

    @classmethod
    def plan_student(cls, teacher: Denoiser, options: Mapping[str, Any], data: ImageSet | None) -> dict[str, Any]:
        steps = options.get("steps", FIRST_STEPS)
        t = list_times(teacher, steps, options.get("student_steps") or steps, options.get("times", "karras"))
        return {"form": cls.form, "times": t[::2].tolist()}

    @classmethod
    def stages(cls, config: Any) -> list[Any]:
        options = dict(config.objective)
        if options.get("student_steps") is not None:
            return [config]
        steps, factor = options.get("steps", FIRST_STEPS), options.pop("last_factor", 1)
        check_halving(steps, steps)
        check_factor(factor)
        if config.data == "teacher":
            raise PidistillError("data=teacher: a later stage's teacher knows a few times alone, and draws no pairs. Draw "
                                 "the first teacher's, pidistill pairs --teacher T --out FOLDER, and set data=FOLDER")
        runs: list[Any] = []
        for own in (steps >> k for k in range(steps.bit_length())):
            train = {"steps": config.train.steps * (factor if own <= 2 else 1)}
            runs.append(change(config, {"objective": options | {"student_steps": own}}, {"train": train},
                               SUCCESSION if runs else {}))
        return runs

    def __init__(self, setup: Setup, *, steps: int = FIRST_STEPS, student_steps: int | None = None,
                 times: HalvedSpacing = "karras", weighting: Literal["truncated_snr", "snr_plus_one"] = "truncated_snr",
                 distance: Any = "l2", flip: bool = False, last_factor: int = 1):
        check_denoiser(setup, "progressive")
        check_factor(last_factor)
        self.t = list_times(setup.teacher, steps, student_steps or steps, times)
        self.data, self.weighting, self.flip = require_images(setup, "progressive"), weighting, flip
        self.shape, self.num_classes = setup.student.shape, setup.student.num_classes
        super().__init__({"student": setup.student},
                         {"teacher": setup.teacher, "distance": make_distance(distance, setup.student.shape)})

    def phases(self) -> list[Phase]:
        return [Phase("progressive", ("student",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = draw_image(self.data, rng, self.num_classes > 0, self.flip)
        return sample | {"i": np.int64(rng.integers(len(self.t) // 2)),
                         "n": rng.standard_normal(self.shape, dtype=np.float32)}

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        y, labels, i = batch["y"], batch.get("labels"), batch["i"]
        t, middle, end = (self.at(2 * i + k) for k in range(3))
        x = y + like(t, y) * batch["n"]
        with torch.no_grad():
            target = self.find_target(x, t, middle, end, labels)
        w = 1 / t**2 + 1 if self.weighting == "snr_plus_one" else (1 / t**2).clip(min=1)
        error: Tensor = self.calls["distance"](self.networks["student"](x, t, labels), target)
        return cast_like(w, error) * error

    def find_target(self, x: Tensor, t: Tensor, middle: Tensor, end: Tensor, labels: Tensor | None) -> Tensor:
        """Find x~ for x (B, C, H, W) at t, from the teacher's steps to `middle` and `end`, (B,); gives (B, C, H, W).

        Written out, x~ = ((1 - b) D(x', t') + b (1 - a) D(x, t)) / (1 - a b) with a = t'/t and b = t''/t': a mean of images.
        The difference of noisy states would lose, at t = 80 and 1024 steps, four of float32's seven digits.
        """
        a, b = middle / t, end / middle
        D = self.calls["teacher"](x, t, labels)
        D_middle = self.calls["teacher"](D + like(a, x) * (x - D), middle, labels)
        return like((1 - b) / (1 - a * b), x) * D_middle + like(b * (1 - a) / (1 - a * b), x) * D

    def at(self, j: Tensor) -> Tensor:
        """Give the times t_j of indices (B,), float64: on the device of j, or the CPU where that has no float64."""
        home = home_of_float64(j.device)
        return self.t.to(home)[j.to(home)]

    def times(self, batch: Batch) -> Tensor:
        return self.at(2 * batch["i"])


def list_times(teacher: Denoiser, steps: int, student_steps: int, spacing: HalvedSpacing) -> Tensor:
    """List t_0 = T > t_1 > ... > t_2N = 0 of a student of N = `student_steps` steps and its teacher, (2 N + 1,) float64.

    They are every k-th of those of the first student, k = steps / N, so that each student's are its teacher's too.

    Raises PidistillError for steps that are no powers of two, and for more than the teacher's noise levels.
    """
    check_halving(steps, student_steps)
    if spacing not in get_args(HalvedSpacing):
        raise suggest_choices("objective.times", str(spacing), list(get_args(HalvedSpacing)))
    with torch.device("cpu"):  # also of a network on the meta device
        if spacing == "karras":
            t = karras_times(2 * steps, teacher.t_min, teacher.t_max, teacher.rho)
        else:
            t = torch.linspace(math.atan(teacher.t_max), math.atan(teacher.t_min), 2 * steps, dtype=torch.float64).tan()
            t[0], t[-1] = teacher.t_max, teacher.t_min  # rounded: T is where students draw
    t = snap(t[::steps // student_steps], teacher.times)
    if len(t) < 2 * student_steps:
        raise PidistillError(f"objective.steps={steps} needs {2 * student_steps} different noise levels, the teacher has "
                             f"{len(t)} near them; take fewer steps")
    return torch.cat([t, t.new_zeros(1)])


def check_halving(steps: Any, student_steps: Any) -> None:
    """Refuse steps of the first student, and of a later one, that are no powers of two."""
    for key, value, most in (("steps", steps, MOST_HALVED), ("student_steps", student_steps, steps)):
        if not isinstance(value, int) or value < 1 or value & (value - 1) or value > most:
            raise PidistillError(f"objective.{key} must be a power of two, 1 to {most}, got {value}")


def check_factor(factor: Any) -> None:
    """Refuse a factor of steps that is no whole number from 1."""
    if not isinstance(factor, int) or factor < 1:
        raise PidistillError(f"objective.last_factor must be a whole number, at least 1, got {factor}")
