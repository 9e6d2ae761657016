"""What objectives share that fit a denoiser to targets: the check of its form, the distance, draws of data, later stages."""

from __future__ import annotations

from typing import Any

import numpy as np

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build_from_config
from pidistill.objectives.base import Sample, Setup
from pidistill.objectives.distances.base import Distance

PREVIOUS = {"teacher": "previous", "student": {"init": "previous", "net": None, "width": 1.0}}
# Settings of a stage that goes on with the student of the one before, and learns from it.


def check_denoiser(setup: Setup, name: str) -> None:
    """Refuse a student that is no denoiser. name: of the objective, for the message."""
    if setup.student.form != "denoiser":
        raise PidistillError(f"the objective {name} trains a denoiser; the student's form is {setup.student.form}")


def make_distance(distance: str | dict[str, Any], shape: tuple[int, ...]) -> Distance:
    """Make a distance of samples of shape (C, H, W), by its name or a mapping with its options."""
    member: Distance = build_from_config("distances", distance)
    if hasattr(member, "check"):
        member.check(shape)
    return member


def draw_data(data: Any, rng: np.random.Generator, num_classes: int, flip: bool = False) -> Sample:
    """Draw an image, or a pair of noise and image, each alike; its label is left out where the teacher has no classes.

    data: of `Setup`. flip: whether every other image is mirrored, by chance.
    """
    index = int(rng.integers(len(data)))
    sample: Sample = data.sample(index, flip=bool(rng.integers(2))) if flip else data.sample(index)
    if not num_classes:
        sample.pop("labels", None)
    return sample
