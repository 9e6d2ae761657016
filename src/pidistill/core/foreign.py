"""Code that users bring is called here: whatever it raises becomes one line, with its name, its input and its own words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pidistill.core.errors import ForeignError, PidistillError, explain

Answer = TypeVar("Answer")
# By these PyTorch tells itself something: the compiler to run without it, a recomputation to stop, that values are missing.
SIGNALS = ("torch._dynamo", "torch._subclasses", "torch.utils.checkpoint")


class ForeignOutOfMemory(ForeignError, torch.OutOfMemoryError):
    """A stranger's code wants more memory than there is, which those who can do with smaller batches look for."""


def call_foreign(function: Callable[..., Answer], who: str, x: Tensor, *more: Any) -> Answer:
    """Call function(x, *more). Raises ForeignError in place of what it raises, but for what is no error (Ctrl-C).

    The exception itself is the cause of the ForeignError. PidistillError, and what PyTorch raises to tell itself something,
    pass as they are. SystemExit does not: sys.exit(0) would end a run without a result, and call that a success.

    who: the name of what is called, for the line.
    more: noise levels, labels.
    """
    try:
        return function(x, *more)
    except (Exception, SystemExit) as error:
        if isinstance(error, PidistillError) or type(error).__module__.startswith(SIGNALS):
            raise
        kind = ForeignOutOfMemory if isinstance(error, torch.OutOfMemoryError) else ForeignError
        raise kind(explain(f"{who} failed on {describe_inputs(x, *more)}", error)) from error


def describe_inputs(x: Tensor, t: Any = None, labels: Any = None) -> str:
    """Describe what a model was called with: `x (2, 3, 28, 28) float32, t = 80, labels (2,) int64`."""
    named = {"x": x, "t": t, "labels": labels}
    return ", ".join(f"{name} {describe_tensor(value)}" if isinstance(value, Tensor) else f"{name} = {value:g}"
                     for name, value in named.items() if isinstance(value, Tensor | float | int))


def describe_tensor(x: Tensor) -> str:
    """Describe a tensor by its shape, type and, where that is not the CPU, device."""
    device = "" if x.device.type == "cpu" else f" on {x.device}"
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}{device}"


def check_answer(D: Any, x: Tensor, who: str, times: int = 1) -> None:
    """Refuse what is no denoised image of x (B, ...): of another type or shape, on another device, or no decimal numbers.

    Another shape, such as one channel for three, would be broadcast, and integers be taken for images in [-1, 1].

    who: the name of what gave D, for the line.
    times: how often it was given x, for D (times B, ...).
    """
    x = x if times == 1 else x.expand(times, *x.shape).flatten(0, 1)
    where = f"{who} must give D as a tensor of the shape of x, {describe_tensor(x)}"
    if isinstance(D, tuple | list):
        raise ForeignError(f"{where}; it gives a {type(D).__name__} of {len(D)}: return D alone")
    if not isinstance(D, Tensor):
        kind = "None" if D is None else f"{type(D).__module__}.{type(D).__qualname__}"
        raise ForeignError(f"{where}; it gives {kind}")
    layout = "" if D.layout == torch.strided else f" {str(D.layout).removeprefix('torch.')}"
    if D.shape != x.shape or D.device != x.device or not D.is_floating_point() or layout:
        raise ForeignError(f"{where}; it gives {describe_tensor(D)}{layout}")
