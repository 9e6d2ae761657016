"""Euler's method is x(u) = x(t) + (u - t) (x - D)/t.

A PID student with zero first-order loss equals it (Lemma 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor


def euler(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor,
          labels: Tensor | None = None) -> Iterator[tuple[float, Tensor]]:
    """Integrate from z (B, ...) at ts[0] over ts (N+1,), descending, which may end in 0; yield (t, x). N evaluations."""
    x, times = z, ts.tolist()
    for t, u in pairwise(times):
        x = x + (u - t) * (x - denoise(x, t, labels)) / t
        yield u, x
