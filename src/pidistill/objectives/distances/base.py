"""Distances d(a, b) in which PID compares the student's prediction a with the teacher's target b.

d(a, b) >= 0, and d(a, b) = 0 exactly where a = b. It need not be a metric: the square of one will do.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build_from_config


@runtime_checkable
class Distance(Protocol):
    """A distance tells how far predictions are from targets, (B, ...) and (B, ...) -> (B,).

    It gives one value a sample, which depends on that sample alone: only the trainer averages. It is differentiable in the
    prediction, and in the target, whose gradient is needed where stop_gradient is off. A distance that cannot take every
    shape has a `check(shape)` too, which refuses samples of shape (C, H, W) with PidistillError before a run begins.
    """

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


def make_distance(distance: str | dict[str, Any], shape: tuple[int, ...]) -> Distance:
    """Make a distance of samples of shape (C, H, W), by its name or a mapping with its options. Raises PidistillError."""
    member: Distance = build_from_config("distances", distance)
    if hasattr(member, "check"):
        member.check(shape)
    return member


def check_shapes(prediction: Tensor, target: Tensor) -> None:
    """Refuse a prediction and a target of different shapes, whose difference would be taken of broadcast copies."""
    if prediction.shape != target.shape:
        raise PidistillError(f"prediction and target must have the same shape, got {tuple(prediction.shape)} and "
                             f"{tuple(target.shape)}")
