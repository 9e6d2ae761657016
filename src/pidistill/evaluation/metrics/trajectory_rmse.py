"""A student's images x are compared with the teacher's own solutions y for the same noise: (mean |x - y|^2)^1/2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import to_float64
from pidistill.evaluation.metrics.base import ImageBatch, Metric, Reference


class TrajectoryRmse(Metric):
    """The metric is `trajectory_rmse`, the root mean square over all images and pixels, in data units ([-1, 1])."""

    needs, least = "solutions", 1

    def __init__(self, num: int, width: int, reference: Reference | None, key: str = "", device: torch.device | str = "cpu"):
        super().__init__(num, width, reference)
        self.state = {"square": torch.zeros(1, dtype=torch.float64), "n": torch.zeros(1, dtype=torch.float64)}

    def add(self, batch: ImageBatch) -> None:
        assert batch.solutions is not None
        if batch.images.shape != batch.solutions.shape:
            raise PidistillError(f"images and solutions must be of one shape, got {tuple(batch.images.shape)} and "
                                 f"{tuple(batch.solutions.shape)}")
        self.state["square"] += (to_float64(batch.images) - to_float64(batch.solutions)).square().sum()
        self.state["n"] += batch.images.numel()

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        return {"trajectory_rmse": math.sqrt(self.state["square"].item() / self.state["n"].item())}


def rmse(a: Tensor, b: Tensor) -> float:
    """Compute the same of two sets of images (N, C, H, W)."""
    metric = TrajectoryRmse(len(a), 0, None)
    metric.add(ImageBatch(a, range(len(a)), solutions=b))
    return metric.result()["trajectory_rmse"]
