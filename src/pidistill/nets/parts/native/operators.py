"""Operators over the kernels: 3x3 convolutions, group normalisation with SiLU, and their gradients.

    y = A^T [(G g G^T) * (B^T d B)] A     Winograd's F(4x4, 3x3): 36 products for 16 outputs, not 144 (Lavin & Gray, 2016)
    y = silu(a (x - mean)/std + b)        a and b include what the embedding scales and shifts

They agree with PyTorch's operators within 1e-5 (rounding: 2e-6 of the size of a convolution's output). GPUs have cuDNN,
which chooses among such algorithms itself. They are plain autograd functions: as a `torch.library.custom_op` a call with its
backward pass takes 30 us longer, for neither fewer lines nor forward-mode derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from pidistill.nets.parts.native import build
from pidistill.nets.parts.native.build import is_fake

CHANNELS = 16  # kernels.c works on multiples of this


def usable(x: Tensor, *channels: int) -> bool:
    """Whether the kernels can take float32 images (B, C, H, W): eagerly on the CPU. Tracers need PyTorch's operators."""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4 and not any(c % CHANNELS for c in channels)
            and (type(x) is Tensor or is_fake(x)) and not OFF.get() and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and not torch._C._functorch.maybe_current_level() and build.load_library() is not None)


OFF: ContextVar[bool] = ContextVar("native_off", default=False)


@contextmanager
def switched_off() -> Iterator[None]:
    """Use PyTorch's operators meanwhile."""
    token = OFF.set(True)
    try:
        yield
    finally:
        OFF.reset(token)


def to_channels_last(x: Tensor) -> Tensor:
    """The same values, (B, C, H, W), with the channels of a place side by side: what the kernels read."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_channels_last(b: int, c: int, h: int, w: int) -> Tensor:
    """Memory for (B, C, H, W) in that order."""
    return torch.empty(b, c, h, w, memory_format=torch.channels_last)


# Convolutions --------------------------------------------------------------------------------------------------------


KEEP = 128 * 128  # channels times channels of the largest weights whose transform is kept, of 2.4 MB
KEPT = WeakTensorKeyDictionary()  # by weight: a copy of its values, and their transform


def is_kept(weight: Tensor) -> bool:
    """Whether the transform of a weight is kept: of small ones, and where images are drawn, which is in inference mode.

    A step of a run keeps none: its memory is predicted to the tensor, and its batches are so large that it gains nothing.
    """
    return (torch.is_inference_mode_enabled() and isinstance(weight, torch.nn.Parameter)
            and weight.shape[0] * weight.shape[1] <= KEEP)


def transform(weight: Tensor) -> Tensor:
    """Give U = G g G^T of a weight (O, C, 3, 3), which is kept: of one image it takes as long as all the rest.

    It is kept with a copy of the weight, and is taken again as long as the two are equal: to compare them takes a tenth of
    the time, and sees whatever has changed the weight.
    """
    kept = KEPT.get(weight)
    if kept is not None and torch.equal(kept[0], weight):
        return kept[1]
    out, channels = weight.shape[:2]
    u = torch.empty(36 * (out * channels + 16))  # a line of the cache between its parts, see kernels.c
    build.run_kernel("transform_weight", weight.contiguous(), out, channels, channels * 9, 9, False, u)
    KEPT[weight] = weight.detach().clone(), u
    return u


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None, keep: bool = False, adjoint: bool = False) -> Tensor:
    """x (B, C, H, W), weight (O, C, 3, 3) -> (B, O, H, W); adjoint: (B, O, H, W) -> (B, C, H, W), the adjoint.

    bias: (O,), or (B, O) for one of each sample. keep: the weight's transform, see `transform`.
    """
    out, channels = weight.shape[:2]
    steps = (channels * 9, 9)
    if adjoint:
        (out, channels), steps = (channels, out), steps[::-1]
    b, _, h, w = x.shape
    y = empty_channels_last(b, out, h, w)
    step = out if bias is not None and bias.ndim == 2 else 0
    rest = (None if bias is None else bias.contiguous(), step, y, b, h, w, channels, out)
    if keep:
        build.run_kernel("conv3x3", to_channels_last(x), transform(weight), *rest)
    else:
        build.run_kernel("conv3x3_of", to_channels_last(x), weight.contiguous(), *steps, adjoint, *rest)
    return y


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """x (B, C, H, W), gradient (B, O, H, W) -> (O, C, 3, 3)."""
    b, channels, h, w = x.shape
    result = torch.empty(gradient.shape[1], channels, 3, 3)
    build.run_kernel("conv3x3_weight", to_channels_last(x), to_channels_last(gradient), result, b, h, w, channels,
                     gradient.shape[1])
    return result


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keep: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = 0 if bias is None else bias.ndim
        return winograd(x, weight, bias, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *conv_gradients(ctx.needs_input_grad, x, weight, ctx.bias, gradient), None


def conv_gradients(needed: tuple[bool, ...], x: Tensor, weight: Tensor, bias: int, gradient: Tensor
                   ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """For x, weight and bias, whose number of dimensions is `bias`; x may be needed no more than its shape."""
    gradient = to_channels_last(gradient)
    return (winograd(gradient, weight, None, adjoint=True) if needed[0] else None,
            weight_gradient(x, gradient) if needed[1] else None,
            gradient.sum(dim=(2, 3) if bias == 2 else (0, 2, 3)) if bias and needed[2] else None)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) within 1e-5 of its size. x: (B, C, H, W), weight: (O, C, 3, 3).

    bias: (O,), or (B, O) for one of each sample.
    """
    if usable(x, *weight.shape[:2]) and weight.dtype == torch.float32:
        return _Conv3x3.apply(x, weight, bias, is_kept(weight))
    one = bias is None or bias.ndim == 1
    y = F.conv2d(x, weight, bias if one else None, padding=1)
    if usable(x):  # a network's first convolution: all that follows is channels last, and would each be adjoint
        y = to_channels_last(y)
    return y if one or bias is None else y + bias[:, :, None, None]


# Group normalisation and SiLU ----------------------------------------------------------------------------------------


def normalise(x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float, silu: bool = True,
              known: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """silu(a (x - mean)/std + b) of x (B, C, H, W), with a and b (B, C); and mean and 1/std, (B, groups), if not `known`."""
    n, c, h, w = x.shape
    mean, rstd = known or (torch.empty(n, groups), torch.empty(n, groups))
    y = empty_channels_last(n, c, h, w)
    build.run_kernel("norm_silu", to_channels_last(x), a, b, mean, rstd, y, n, h * w, c, groups, eps, silu,
                     known is not None)
    return y, mean, rstd


def normalise_gradients(x: Tensor, a: Tensor, b: Tensor, mean: Tensor, rstd: Tensor, gradient: Tensor, silu: bool = True
                        ) -> tuple[Tensor, Tensor, Tensor]:
    """For x, a and b."""
    n, c, h, w = x.shape
    g_x, g_a, g_b = empty_channels_last(n, c, h, w), torch.empty(n, c), torch.empty(n, c)
    build.run_kernel("norm_silu_back", to_channels_last(x), a, b, mean, rstd, to_channels_last(gradient), g_x, g_a, g_b, n,
                     h * w, c, mean.shape[1], silu)
    return g_x, g_a, g_b


class _NormSiLUConv(torch.autograd.Function):
    """conv3x3(silu(norm(x))), of which x alone is kept: the cheap part is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float, weight: Tensor, bias: Tensor | None,
                keep: bool) -> Tensor:
        x = to_channels_last(x)
        h, mean, rstd = normalise(x, a, b, groups, eps)
        ctx.save_for_backward(x, a, b, mean, rstd, weight)
        ctx.groups, ctx.eps, ctx.bias = groups, eps, 0 if bias is None else bias.ndim
        return winograd(h, weight, bias, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, mean, rstd, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        h = normalise(x, a, b, ctx.groups, ctx.eps, known=(mean, rstd))[0] if needed[5] else x
        g_h, g_weight, g_bias = conv_gradients((any(needed[:3]), *needed[5:7]), h, weight, ctx.bias, gradient)
        del h
        g_x = (None, None, None) if g_h is None else normalise_gradients(x, a, b, mean, rstd, g_h)
        return *g_x, None, None, g_weight, g_bias, None


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        x = to_channels_last(x)
        y, mean, rstd = normalise(x, a, b, groups, eps, silu)
        ctx.save_for_backward(x, a, b, mean, rstd)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, mean, rstd = ctx.saved_tensors
        return *normalise_gradients(x, a, b, mean, rstd, gradient, ctx.silu), None, None, None


def affine(x: Tensor, norm: torch.nn.GroupNorm, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """a and b, (B, C), of norm(x) * scale + shift = a (x - mean)/std + b."""
    a, b = (each.expand(len(x), -1) for each in (norm.weight, norm.bias))
    if scale is not None and shift is not None:
        a, b = a * scale, b * scale + shift
    return a.contiguous(), b.contiguous()


def norm_silu(x: Tensor, norm: torch.nn.GroupNorm, scale: Tensor | None = None, shift: Tensor | None = None,
              silu: bool = True) -> Tensor:
    """silu(norm(x) * scale + shift), or without SiLU. x: (B, C, H, W); scale, shift: (B, C) or None."""
    if usable(x, x.shape[1]):
        return _NormSiLU.apply(x, *affine(x, norm, scale, shift), norm.num_groups, norm.eps, silu)
    h = norm(x)
    if scale is not None and shift is not None:
        h = torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None])
    return F.silu(h) if silu else h


def norm_silu_conv(x: Tensor, norm: torch.nn.GroupNorm, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None,
                   shift: Tensor | None = None) -> Tensor:
    """conv3x3(norm_silu(x, norm, scale, shift), weight, bias)."""
    if usable(x, *weight.shape[:2]):
        return _NormSiLUConv.apply(x, *affine(x, norm, scale, shift), norm.num_groups, norm.eps, weight, bias,
                                   is_kept(weight))
    return conv3x3(norm_silu(x, norm, scale, shift), weight, bias)
