"""Distance of a student's images to the teacher's own solution for the same noise."""

from __future__ import annotations

import math

from torch import Tensor


def trajectory_rmse(student: Tensor, teacher: Tensor) -> float:
    """Root mean square over all images and pixels, in data units ([-1, 1]). Both (N, C, H, W), same seeds and labels."""
    return math.sqrt((student.double() - teacher.double()).square().mean().item())
