"""Score identity Distillation, SiD (Zhou et al., 2024, Eq. 23 and Algorithm 1).

The loss of the student x_g = G(z), at x_t = x_g + t n, with f = D the teacher's answer and g = D_f the fake's, is

    (1 - alpha) w |f - g|^2 + w (f - g)^T (g - x_g)  =  w (f - g)^T [(f - x_g) - alpha (f - g)],   w = C / |x_g - f|_1,

C the numbers of an image and w without gradient; the gradient goes through f and g into the student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast
from pidistill.core.tensors import find_device
from pidistill.models.denoiser import Denoiser, Preconditioned, name_teacher
from pidistill.objectives._correction import check_ranges
from pidistill.objectives._levels import KarrasLevels, LognormalLevels
from pidistill.objectives._one_step import OneStep
from pidistill.objectives.base import Setup


class SiD(OneStep):
    """The fake's denoising step, then a step of the student on Eq. (23), by turns, as in Algorithm 1.

    It needs noise, and the teacher's gradient: a black box is refused.

    init_level: sigma_init, the noise level that the student draws from; 2.5 by default, as in the paper.
    alpha: of Eq. (23); 1 and 1.2 are the paper's, with the better FID on CIFAR-10 at 1.2.
    reach: the student's levels t are uniform in Karras's time up to this share of it: t_max/1000 = 0.8 in the paper, which
        leaves t above 24.4 of 80 out.
    p_mean, p_std: of ln t in the fake's phase, EDM's.
    fake_steps: steps of the fake for each of the student; 1 there.
    warmup: steps of the fake before the student's first; none there. A fake that starts at random needs some.
    fake: its network: None for the teacher's, or one by description, {"name": ..., options}, or by a teacher's spec.
    fake_optimizer: settings of the fake that differ from Adam (0, 0.999) and the run's, such as {"lr": 2e-3}.
    teacher_precision: as of `PID`.

    Faithful: losses, order of the updates, network, levels and weights. Losses here are means over an image's numbers, not
    sums; Adam does not feel the factor.
    """

    score_identity, by_error = True, True
    differentiable = ("the objective sid needs a teacher that can be differentiated; this one gives no gradient: "
                      "objective.name=diff_instruct needs none")

    @classmethod
    def asks_for_gradient(cls, options: Mapping[str, Any]) -> bool:
        return True

    def __init__(self, setup: Setup, *, init_level: float | None = None, alpha: float = 1.2, reach: float = 0.8,
                 p_mean: float = -1.2, p_std: float = 1.2, fake_steps: int = 1, warmup: int = 0,
                 fake: str | dict[str, Any] | None = None, fake_optimizer: dict[str, Any] | None = None,
                 teacher_precision: Autocast | None = None):
        check_ranges({"p_std": (p_std, 0, math.inf), "reach": (reach, 0, 1)})
        if not gives_gradient(setup.teacher):
            raise PidistillError(self.differentiable.replace("this one", name_teacher(setup.teacher)))
        self.alpha = alpha
        levels, fake_levels = KarrasLevels(setup, reach), LognormalLevels(setup, p_mean, p_std)
        self.prepare(setup, init_level, levels, fake_levels, fake, fake_optimizer, fake_steps, warmup, teacher_precision)


def gives_gradient(teacher: Denoiser) -> bool:
    """Tell whether D has a gradient in x. A network is taken to have one; another teacher is asked, on one image."""
    if isinstance(teacher, Preconditioned):
        return True  # the loss looks again, at what the first step gives
    device = find_device(teacher)
    if device.type == "meta":
        return True  # a dry run has no values to ask with
    with torch.device(device), torch.enable_grad():
        x = torch.zeros(1, *teacher.shape, requires_grad=True)
        labels = torch.zeros(1, dtype=torch.int64) if teacher.num_classes else None
        return bool(teacher(x, torch.full((1,), teacher.t_max), labels).requires_grad)
