"""Resampling of images by a factor of two with a separable filter f of k taps, axis by axis.

Down: y_i = sum_k f_k x_{2i + k - pad}. Up: its adjoint times 2, y_{2m + r - pad} = 2 sum_j f_{2j + r} x_{m - j}, r = 0, 1.

EDM resamples with grouped (transposed) convolutions, one for every channel, which no hardware likes. Filters are sums of
slices here, and the 2x2 box is what it is: average pooling and nearest-neighbour upsampling.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def make_filter_kernel(taps: Sequence[float]) -> Tensor:
    """Make the separable filter (1, 1, k, k) of sum 1 from its k taps."""
    f = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(f, f)[None, None] / f.sum() ** 2


def resample(x: Tensor, kernel: Tensor | None, pad: int, *, up: bool) -> Tensor:
    """Double or halve the height and width of x: (B, C, H, W) -> (B, C, H', W').

    kernel: separable filter (1, 1, k, k); None stands for the 2x2 box.
    pad: zeros that surround x on each side, where it is filtered.
    up: doubles; otherwise halves.
    """
    if kernel is None:
        return F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)
    taps = kernel[0, 0].sum(dim=0).to(x.dtype)
    for axis in (2, 3):
        x = (spread if up else halve)(x, taps, pad, axis)
    return x


def pad_axis(x: Tensor, pad: int, axis: int) -> Tensor:
    """Put `pad` zeros before and after x: (B, C, H, W) along axis 2 or 3."""
    return F.pad(x, (0, 0, pad, pad) if axis == 2 else (pad, pad)) if pad else x


def halve(x: Tensor, taps: Tensor, pad: int, axis: int) -> Tensor:
    """Filter x along one axis at every second place: y_i = sum_k f_k x_{2i + k - pad}."""
    x, k, before = pad_axis(x, pad, axis), len(taps), (slice(None),) * axis
    n = (x.shape[axis] - k) // 2 + 1
    return functools.reduce(torch.add, (taps[j] * x[(*before, slice(j, j + 2 * n - 1, 2))] for j in range(k)))


def spread(x: Tensor, taps: Tensor, pad: int, axis: int) -> Tensor:
    """Filter x along one axis into twice as many places: y_{2m + r - pad} = 2 sum_j f_{2j + r} x_{m - j}.

    It is the adjoint of `halve`, times 2, since an input feeds two outputs.
    """
    length = 2 * (x.shape[axis] - 1) - 2 * pad + len(taps)
    taps = F.pad(taps, (0, len(taps) % 2))
    half, n = len(taps) // 2, x.shape[axis] + len(taps) // 2 - 1
    x = pad_axis(x, half - 1, axis)
    phases = [functools.reduce(torch.add, (2 * taps[2 * j + r] * x.narrow(axis, half - 1 - j, n) for j in range(half)))
              for r in (0, 1)]
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1).narrow(axis, pad, length)
