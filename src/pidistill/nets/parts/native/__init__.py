"""Kernels in C for training and drawing on the CPU: 3x3 convolutions by Winograd's algorithm, group normalisation with SiLU.

`kernels.c` is compiled once for this machine, in a second, with the C compiler that is there; without one PyTorch's own
operators are used, which take about twice as long. They agree within 1e-5 (rounding: 2e-6 of the size of a convolution's
output). Off with PIDISTILL_NATIVE=0. GPUs have cuDNN, which chooses among such algorithms itself.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pidistill.files.folders import find_cache_folder

SOURCE = Path(__file__).with_name("kernels.c")
# OpenMP's own functions are those that PyTorch has loaded: a second copy of the library would fight over the cores.
COMPILE = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-nostartfiles", "-nodefaultlibs"]
CHANNELS = 16  # kernels.c works on multiples of this


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are switched off or cannot be had (said once)."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("PIDISTILL_NATIVE") == "0" or platform.system() != "Linux":
        return None
    try:
        if not compiler:
            raise OSError("no C compiler was found")
        path = find_cache_folder() / "native" / f"{library_key(compiler)}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            subprocess.run([*compiler.split(), *COMPILE, "-o", str(temporary), str(SOURCE)], check=True, capture_output=True,
                           text=True, timeout=120)
            temporary.replace(path)  # whole or not at all: several processes may do this
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        from pidistill.core.console import console  # its imports are for those who need them

        console.print(f"the CPU's own kernels cannot be compiled ({reason}); PyTorch's are used, which are slower",
                      soft_wrap=True)
        return None


def library_key(compiler: str) -> str:
    """What a compiled file depends on: source, options, compiler, processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, timeout=60).stdout
    text = "\n".join([SOURCE.read_text(), *COMPILE, version, platform.machine(), *processor])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def usable(x: Tensor, *channels: int) -> bool:
    """Whether the kernels can take float32 images (B, C, H, W): eagerly on the CPU. Tracers need PyTorch's operators."""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4 and not any(c % CHANNELS for c in channels)
            and (type(x) is Tensor or is_fake(x)) and not off.get() and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing() and not torch._C._functorch.maybe_current_level() and library() is not None)


off: ContextVar[bool] = ContextVar("off", default=False)


@contextmanager
def switched_off() -> Iterator[None]:
    """PyTorch's operators meanwhile."""
    token = off.set(True)
    try:
        yield
    finally:
        off.reset(token)


def is_fake(x: Any) -> bool:
    """A tensor without values, with which a step's memory is predicted: nothing is computed, but storages are made."""
    return hasattr(x, "fake_mode")


def call(name: str, *arguments: Any) -> None:
    """A kernel with tensors as their addresses, None as none, numbers as long, float or (bool) int; threads come last."""
    kinds: dict[type, Any] = {int: ctypes.c_long, float: ctypes.c_float, bool: ctypes.c_int}
    if any(map(is_fake, arguments)):
        return
    values = [kinds[type(x)](x) if type(x) in kinds else ctypes.c_void_p(None if x is None else x.data_ptr())
              for x in arguments]
    getattr(library(), name)(*values, ctypes.c_int(torch.get_num_threads()))


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def empty_last(b: int, c: int, h: int, w: int) -> Tensor:
    return torch.empty(b, c, h, w, memory_format=torch.channels_last)


# Convolutions --------------------------------------------------------------------------------------------------------


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool = False) -> Tensor:
    """x (B, C, H, W), weight (O, C, 3, 3) -> (B, O, H, W); turned: (B, O, H, W) -> (B, C, H, W), the adjoint.

    bias: (O,), or (B, O) for one of each sample.
    """
    out, channels = weight.shape[:2]
    steps = (channels * 9, 9)
    if turned:
        (out, channels), steps = (channels, out), steps[::-1]
    u = torch.empty(36 * out * channels)
    call("transform_weight", weight.contiguous(), out, channels, *steps, turned, u)
    b, _, h, w = x.shape
    y = empty_last(b, out, h, w)
    step = out if bias is not None and bias.ndim == 2 else 0
    call("conv3x3", last(x), u, None if bias is None else bias.contiguous(), step, y, b, h, w, channels, out)
    return y


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """x (B, C, H, W), gradient (B, O, H, W) -> (O, C, 3, 3)."""
    b, channels, h, w = x.shape
    result = torch.empty(gradient.shape[1], channels, 3, 3)
    call("conv3x3_weight", last(x), last(gradient), result, b, h, w, channels, gradient.shape[1])
    return result


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = 0 if bias is None else bias.ndim
        return winograd(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return conv_gradients(ctx.needs_input_grad, x, weight, ctx.bias, gradient)


def conv_gradients(needed: tuple[bool, ...], x: Tensor, weight: Tensor, bias: int, gradient: Tensor
                   ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """For x, weight and bias, whose number of dimensions is `bias`; x may be needed no more than its shape."""
    gradient = last(gradient)
    return (winograd(gradient, weight, None, turned=True) if needed[0] else None,
            weight_gradient(x, gradient) if needed[1] else None,
            gradient.sum(dim=(2, 3) if bias == 2 else (0, 2, 3)) if bias and needed[2] else None)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) within 1e-5 of its size. x: (B, C, H, W), weight: (O, C, 3, 3).

    bias: (O,), or (B, O) for one of each sample.
    """
    if usable(x, *weight.shape[:2]) and weight.dtype == torch.float32:
        return _Conv3x3.apply(x, weight, bias)
    one = bias is None or bias.ndim == 1
    y = F.conv2d(x, weight, bias if one else None, padding=1)
    if usable(x):  # a network's first convolution: all that follows is channels last, and would each be turned
        y = last(y)
    return y if one or bias is None else y + bias[:, :, None, None]


# Group normalisation and SiLU ----------------------------------------------------------------------------------------


def normalise(x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float, silu: bool = True,
              known: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """silu(a (x - mean)/std + b) of x (B, C, H, W), with a and b (B, C); and mean and 1/std, (B, groups), if not `known`."""
    n, c, h, w = x.shape
    mean, rstd = known or (torch.empty(n, groups), torch.empty(n, groups))
    y = empty_last(n, c, h, w)
    call("norm_silu", last(x), a, b, mean, rstd, y, n, h * w, c, groups, eps, silu, known is not None)
    return y, mean, rstd


def normalise_gradients(x: Tensor, a: Tensor, b: Tensor, mean: Tensor, rstd: Tensor, gradient: Tensor, silu: bool = True
                        ) -> tuple[Tensor, Tensor, Tensor]:
    """For x, a and b."""
    n, c, h, w = x.shape
    g_x, g_a, g_b = empty_last(n, c, h, w), torch.empty(n, c), torch.empty(n, c)
    call("norm_silu_back", last(x), a, b, mean, rstd, last(gradient), g_x, g_a, g_b, n, h * w, c, mean.shape[1], silu)
    return g_x, g_a, g_b


class _NormSiLUConv(torch.autograd.Function):
    """conv3x3(silu(norm(x))), of which x alone is kept: the cheap part is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float, weight: Tensor, bias: Tensor | None
                ) -> Tensor:
        x = last(x)
        h, mean, rstd = normalise(x, a, b, groups, eps)
        ctx.save_for_backward(x, a, b, mean, rstd, weight)
        ctx.groups, ctx.eps, ctx.bias = groups, eps, 0 if bias is None else bias.ndim
        return winograd(h, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, mean, rstd, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        h = normalise(x, a, b, ctx.groups, ctx.eps, known=(mean, rstd))[0] if needed[5] else x
        g_h, g_weight, g_bias = conv_gradients((any(needed[:3]), *needed[5:]), h, weight, ctx.bias, gradient)
        del h
        g_x = (None, None, None) if g_h is None else normalise_gradients(x, a, b, mean, rstd, g_h)
        return *g_x, None, None, g_weight, g_bias


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        x = last(x)
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
        return _NormSiLUConv.apply(x, *affine(x, norm, scale, shift), norm.num_groups, norm.eps, weight, bias)
    return conv3x3(norm_silu(x, norm, scale, shift), weight, bias)
