"""DPM-Solver++(2M) (Lu et al., 2022b), multistep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor


def dpm_solver_pp(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor,
                  labels: Tensor | None = None) -> Iterator[tuple[float, Tensor]]:
    """x(u) = (u/t) x + (1 - u/t) (D + h/(2 h') (D - D')), with D' at the time before and h' the step from there.

    Algorithm 2 there, over alpha_u; the first step and one to 0 are of the first order. z: (B, ...) at ts[0]; ts: (N+1,),
    descending, may end in 0. Yields (t, x). N evaluations.
    """
    x, times = z, ts.tolist()
    before: tuple[float, Tensor] | None = None
    for t, u in pairwise(times):
        D = denoise(x, t, labels)
        guess = D
        if before is not None and u > 0:
            guess = D + (math.log(t / u) / (2 * math.log(before[0] / t))) * (D - before[1])
        x = (u / t) * x + (1 - u / t) * guess
        before = (t, D)
        yield u, x
