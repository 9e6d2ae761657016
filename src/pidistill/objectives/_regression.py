"""What objectives share that fit a denoiser to targets: the check of its form, pairs, later stages."""

from __future__ import annotations

from typing import Any

import numpy as np

from pidistill.core.errors import PidistillError
from pidistill.objectives.base import Sample, Setup

SUCCESSION = {"teacher": "previous", "student": {"init": "previous", "net": None, "width": 1.0}}
# Settings of a stage that goes on with the student of the one before, and learns from it.


def check_denoiser(setup: Setup, name: str) -> None:
    """Refuse a student that is no denoiser. name: of the objective, for the message."""
    if setup.student.form != "denoiser":
        raise PidistillError(f"the objective {name} trains a denoiser; the student's form is {setup.student.form}")


def require_pairs(setup: Setup, name: str) -> Any:
    """Give a setup's pairs. Raises PidistillError if it has none. name: of the objective, for the message."""
    if setup.data is None:
        raise PidistillError(f"the objective {name} needs pairs of noise and the teacher's solution: `pidistill pairs`, or "
                             "from Python Setup(student, teacher, grid, data)")
    return setup.data


def draw_pair(pairs: Any, rng: np.random.Generator, num_classes: int) -> Sample:
    """Draw a pair of noise z at T and solution y, (C, H, W), each alike; its label too where the teacher has classes."""
    sample = pairs.sample(int(rng.integers(len(pairs))))
    return {key: value for key, value in sample.items() if key in ("z", "y") or (key == "labels" and num_classes)}
