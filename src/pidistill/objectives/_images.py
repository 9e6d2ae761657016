"""Images as objectives that learn from data draw them, and the steps of a schedule that such objectives have."""

from __future__ import annotations

from typing import Any

import numpy as np

from pidistill.core.errors import PidistillError
from pidistill.files.image_set import ImageSet
from pidistill.objectives.base import Sample, Setup


def require_images(setup: Setup, name: str) -> ImageSet:
    """Give a setup's images. Raises PidistillError if it has none. name: of the objective, for the error."""
    if setup.data is None:
        raise PidistillError(f"the objective {name} needs images: data=..., a folder, a .zip, an .npz or `digits`; from "
                             "Python Setup(student, teacher, grid, data)")
    return setup.data


def draw_image(data: ImageSet, rng: np.random.Generator, conditional: bool, flip: bool) -> Sample:
    """Draw an image y (C, H, W), and its label where the model is conditional.

    flip: every other image, by chance, is mirrored left to right.
    """
    index = int(rng.integers(len(data)))
    sample = data.sample(index, flip=True) if flip and rng.integers(2) else data.sample(index)
    return {key: value for key, value in sample.items() if key == "y" or (key == "labels" and conditional)}


def take_run_steps(config: Any) -> Any:
    """Give a run's configuration whose objective knows how many steps its schedule has: those of the run, unless it says."""
    return config.model_copy(update={"objective": {"schedule_steps": config.train.steps} | config.objective})
