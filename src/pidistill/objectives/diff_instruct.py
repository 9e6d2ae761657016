"""Diff-Instruct (Luo et al., 2023, Algorithm 1): the student's distribution approaches the teacher's at all noise levels.

The gradient of the integral KL divergence (Luo et al., 2023, Section 3.2) in the student x_g = G(z), at x_t = x_g + t n, is

    E w(t) (s_f(x_t, t) - s(x_t, t))^T dx_t/dtheta,    s = (D - x_t) / t^2 the teacher's score, s_f the fake's.

With w(t) = t^2, which the published code takes, it is E (D_f - D)^T dx_g/dtheta.
"""

from __future__ import annotations

import math
from typing import Any

from pidistill.core.precision import Autocast
from pidistill.objectives._correction import check_ranges
from pidistill.objectives._levels import LognormalLevels
from pidistill.objectives._one_step import OneStep
from pidistill.objectives.base import Setup


class DiffInstruct(OneStep):
    """The fake's denoising step, then a step of the student along (D_f - D)^T dx_g/dtheta, by turns, as in Algorithm 1.

    It needs noise, and answers of the teacher without gradients: a black box will do, with a fake of its own.

    init_level: sigma_init, the noise level that the student draws from; 2.5 by default.
    p_mean, p_std: of ln t, in both phases; EDM's, as in the published code.
    fake_steps: steps of the fake for each of the student; 1 there.
    warmup: steps of the fake before the student's first; none there. A fake that starts at random needs some.
    fake: its network: None for the teacher's, or one by description, {"name": ..., options}, or by a teacher's spec.
    fake_optimizer: settings of the fake that differ from Adam (0, 0.999) and the run's, such as {"lr": 2e-3}.
    teacher_precision: as of `PID`.

    Faithful: losses, order of the updates, network, levels and weights. Left out: the augmentation of the student's images
        that the published code offers, since networks here take no labels of augmentations.
    """

    def __init__(self, setup: Setup, *, init_level: float | None = None, p_mean: float = -1.2, p_std: float = 1.2,
                 fake_steps: int = 1, warmup: int = 0, fake: str | dict[str, Any] | None = None,
                 fake_optimizer: dict[str, Any] | None = None, teacher_precision: Autocast | None = None):
        check_ranges({"p_std": (p_std, 0, math.inf)})
        levels = LognormalLevels(setup, p_mean, p_std)
        self.prepare(setup, init_level, levels, levels, fake, fake_optimizer, fake_steps, warmup, teacher_precision)
