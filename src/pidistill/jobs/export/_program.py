"""A student's step as a program: traced with PyTorch's own operators, for any number of images."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError, explain
from pidistill.models.one_step import OneStep


def make_dynamic(step: OneStep) -> tuple[Any, ...]:
    """Give the dynamic shapes of a step's inputs: any number of images from 1."""
    batch = torch.export.Dim("batch", min=1)
    return ({0: batch}, {0: batch})[:2 if step.num_classes else 1]


def trace(step: OneStep) -> torch.export.ExportedProgram:
    """Trace a step, with an example of two images. Raises PidistillError for a network that cannot be traced."""
    replace_branches(step)
    try:
        with torch.no_grad():
            return torch.export.export(step, step.make_inputs(2), dynamic_shapes=make_dynamic(step))
    except Exception as error:  # of the tracer, and of the network
        raise PidistillError(explain("the network cannot be traced", error)) from error


def replace_branches(step: nn.Module) -> None:
    """Take out of diffusers' layers what asks for the number of images, and would bind the program to fewer than 64."""
    for module in step.modules():
        if type(module).__name__ == "Upsample2D" and not getattr(module, "use_conv_transpose", False):
            module.forward = types.MethodType(upsample, module)


def upsample(self: Any, hidden_states: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
    """Compute what diffusers' Upsample2D does, (B, C, H, W) -> (B, C', 2H, 2W)."""
    x = hidden_states
    if self.norm is not None:
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if self.interpolate:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if output_size is None else \
            F.interpolate(x, size=output_size, mode="nearest")
    if self.use_conv:
        x = self.conv(x) if self.name == "conv" else self.Conv2d_0(x)
    return x
