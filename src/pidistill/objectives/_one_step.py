"""One-step students of Diff-Instruct and SiD, G(z) = D(sigma_init z/T, sigma_init), which the correction alone trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast
from pidistill.files.datasets import ImageSet
from pidistill.models.denoiser import Denoiser
from pidistill.objectives._correction import Correction, check_ranges
from pidistill.objectives._levels import Levels
from pidistill.objectives.base import Setup

INIT_LEVEL = 2.5  # sigma_init of SiD (Zhou et al., 2024)


class OneStep(Correction):
    """Two phases: the fake learns the student's images, then the correction moves the student. A subclass takes options.

    The student is a denoiser that draws from the noise level sigma_init, not from T: a teacher's network that is asked there
    gives images that differ and have edges, where at T it gives the mean of all.
    """

    form = "denoiser"

    @classmethod
    def plan_student(cls, teacher: Denoiser, options: Mapping[str, Any], data: ImageSet | None) -> dict[str, Any]:
        level = options.get("init_level")
        level = INIT_LEVEL if level is None else level
        if not isinstance(level, int | float) or not teacher.t_min <= level <= teacher.t_max:
            raise PidistillError(f"objective.init_level must be a noise level of the teacher's, {teacher.t_min:g} to "
                                 f"{teacher.t_max:g}, got {level}")
        return {"form": cls.form, "drawing_time": float(level)}

    def prepare(self, setup: Setup, init_level: float | None, levels: Levels, fake_levels: Levels,
                fake: str | dict[str, Any] | None, fake_optimizer: dict[str, Any] | None, fake_steps: int, warmup: int,
                teacher_precision: Autocast | None) -> None:
        """Refuse what means nothing, and make networks and draws. Parameters: `Correction`, and the subclasses' options."""
        student = setup.student
        if student.form != self.form or init_level not in (None, student.drawing_time):
            raise PidistillError(f"objective.init_level={init_level} needs a student of the form denoiser that draws there; "
                                 f"this one is of the form {student.form} and draws at {student.drawing_time:g}")
        check_ranges({"fake_steps": (fake_steps, 0, math.inf), "warmup": (warmup, -1, math.inf)})
        self.teacher_precision = teacher_precision
        super().__init__({"student": student}, {"teacher": setup.teacher})
        self.prepare_correction(setup, levels, fake_levels, fake, fake_optimizer, fake_steps, warmup)
