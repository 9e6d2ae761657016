"""Heun's second-order method, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor


def heun(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor,
         labels: Tensor | None = None) -> Iterator[tuple[float, Tensor]]:
    """Karras et al. (2022), Algorithm 1. z: (B, ...) at ts[0]; ts: (N+1,), descending, may end in 0. Yields (t, x).

    2 N evaluations; 2 N - 1 where ts ends in 0, whose last step is Euler's.
    """
    x, times = z, ts.tolist()
    for t, u in pairwise(times):
        d = (x - denoise(x, t, labels)) / t
        y = x + (u - t) * d
        if u > 0:  # the slope at 0 is 0/0
            d = (d + (y - denoise(y, u, labels)) / u) / 2
            y = x + (u - t) * d
        x = y
        yield u, x
