"""Small conversions between tensors, batches and images.

A byte p and a pixel x in [-1, 1] are tied as in EDM: x = p / 127.5 - 1, and p = floor(127.5 x + 128), clipped to 0 ... 255.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def home_of_float64(device: torch.device) -> torch.device:
    """Give where float64 numbers of this device are kept: the CPU for Apple's GPUs and some of Intel's, which have none."""
    without = device.type == "mps" or (device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64)
    return torch.device("cpu") if without else device


def to_float64(x: Tensor) -> Tensor:
    """Give x in float64, on its device or, where that has none, on the CPU, which then waits for the device.

    In two steps: what PyTorch 2.14 copies from an Apple GPU into float64 at once is never written (its issue 197715).
    """
    return x.to(home_of_float64(x.device)).double()


def cast_like(t: Tensor, x: Tensor) -> Tensor:
    """Give t in the dtype and on the device of x, float64 of the CPU too where the device has none."""
    return t.to(x.dtype).to(x.device)


def like(t: Tensor, x: Tensor) -> Tensor:
    """Shape t: (B,) like x: (B, ...), that is as (B, 1, ..., 1) in the dtype and on the device of x."""
    return cast_like(t, x).reshape(-1, *[1] * (x.ndim - 1))


def send(x: Tensor, device: torch.device) -> Tensor:
    """Send a tensor of the CPU to the device, a GPU of NVIDIA's without making the host wait for what it is doing.

    float64 becomes float32 where the device has none.
    """
    if x.dtype == torch.float64 and home_of_float64(device) != device:
        x = x.float()
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def expand_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Give every sample of x: (B, ...) a time: t, a number or (B,), becomes (B,) in the dtype and on the device of x."""
    if not isinstance(t, Tensor):
        return x.new_full((x.shape[0],), t)  # filled on the device: a copy of one number would make the host wait
    return cast_like(t, x).expand(x.shape[0])


def one_hot(labels: Tensor | None, classes: int, x: Tensor) -> Tensor:
    """Encode labels (B,) int64 as (B, classes) in the dtype of x: (B, ...); no label is a row of zeros, as in EDM."""
    if labels is None:
        return x.new_zeros(len(x), classes)
    return F.one_hot(labels, classes).to(x.dtype)


def quantise(x: Tensor) -> Tensor:
    """Turn images in [-1, 1] into uint8, as EDM writes them: x * 127.5 + 128, clipped and truncated."""
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8)


def dequantise(x: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [-1, 1]."""
    return x.to(torch.float32) / 127.5 - 1


def clip_images(x: Tensor) -> Tensor:
    """Clip images (N, C, H, W) to [-1, 1]; vectors (N, ...) stay as they are."""
    return x.clip(-1, 1) if x.ndim == 4 else x


def run_outside_autocast(function: Callable[..., Tensor], x: Tensor, *args: Tensor | None) -> Tensor:
    """Call function(x, *args) in full precision inside an autocast region: half tensors become float32, float64 stays.

    Without autocast this is function(x, *args) as it stands, in whatever type the caller chose.
    """
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return function(x, *args)
    with torch.autocast(device, enabled=False):
        return function(*(y.float() if y is not None and y.dtype in (torch.float16, torch.bfloat16) else y
                          for y in (x, *args)))


def find_device(module: nn.Module) -> torch.device:
    """Find the device that a module's parameters and buffers are on; the CPU if it has none."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
