"""Small conversions between tensors, batches and images.

A byte p and a pixel x in [-1, 1] are tied as in EDM: x = p / 127.5 - 1, and p = floor(127.5 x + 128), clipped to 0 ... 255.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of weights in files
Copyable = TypeVar("Copyable", bound=nn.Module)


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
        return x.new_zeros(x.shape[0], classes)
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


# Memory that several tensors share ----------------------------------------------------------------------------------------


def locate(tensor: Tensor) -> tuple[Any, ...] | None:
    """Give what tells a tensor's memory from any other's: tensors of one place are one tensor under several names.

    None where there is none of its own: of empty tensors, of those on the meta device, and of shards.
    """
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_meta or not tensor.numel():
        return None
    return (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(),
            tensor.dtype)


def find_overlaps(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Find pairs of names whose tensors are different views of the same elements, such as a matrix and its transpose."""
    storages: dict[object, dict[object, str]] = {}
    for name, tensor in tensors.items():
        if place := locate(tensor):
            storages.setdefault(place[:2], {}).setdefault(place, name)
    pairs: list[tuple[str, str]] = []
    for names in storages.values():
        ordered = sorted(names.values(), key=lambda name: _range_of_bytes(tensors[name]))
        ranges = [_range_of_bytes(tensors[name]) for name in ordered]
        if all(before[1] <= after[0] for before, after in pairwise(ranges)):
            continue  # parts of one memory, each by itself
        owners = torch.full((tensors[ordered[0]].untyped_storage().nbytes(),), -1, dtype=torch.int16)  # of every byte
        for k, name in enumerate(ordered):
            tensor = tensors[name]
            size = tensor.element_size()
            own = owners.as_strided((*tensor.shape, size), (*(size * step for step in tensor.stride()), 1),
                                    size * tensor.storage_offset())
            if (other := int(own.max())) >= 0:
                pairs.append((ordered[other], name))
            own.fill_(k)
    return pairs


def _range_of_bytes(tensor: Tensor) -> tuple[int, int]:
    """Give the first byte of its storage that a tensor has, and that after its last."""
    start = int(tensor.storage_offset())
    last = start + sum((n - 1) * int(step) for n, step in zip(tensor.shape, tensor.stride()))
    return start * tensor.element_size(), (last + 1) * tensor.element_size()


def copy_module(module: Copyable) -> Copyable:
    """Copy a module with its weights; those that are views of one memory are so in the copy, which deepcopy would part."""
    held = dict(enumerate((*module.parameters(), *module.buffers())))
    pairs = find_overlaps({str(k): tensor for k, tensor in held.items()})
    storages = {held[int(a)].untyped_storage().data_ptr(): held[int(a)].untyped_storage().clone() for a, _ in pairs}
    memo: dict[int, Tensor] = {}
    for tensor in held.values():
        place = locate(tensor)
        if place and (copied := storages.get(place[1])) is not None:
            view = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                copied, tensor.storage_offset(), tensor.shape, tensor.stride())
            memo[id(tensor)] = nn.Parameter(view, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else view
    return copy.deepcopy(module, memo)


def cast_tensors(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert floating-point tensors to a type; what has several names (tied weights) is one tensor afterwards too."""
    places = {name: locate(value) or name for name, value in tensors.items()}
    done = {places[name]: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    return {name: done[place] for name, place in places.items()}
