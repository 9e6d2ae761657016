"""DPM-Solver (Lu et al., 2022), singlestep, is exact in the linear part of the ODE.

It expands the noise e = (x - D)/t in lambda = -log t; order 1 is x(u) = x(t) + (u - t) e.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Literal

from torch import Tensor

from pidistill.core.errors import PidistillError


def dpm_solver(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None, *,
               order: Literal[1, 2, 3] = 3, fast: bool = False) -> Iterator[tuple[float, Tensor]]:
    """Integrate from z (B, ...) at ts[0] over ts (N+1,), descending, which may end in 0; yield (t, x).

    order * N evaluations, and one instead of `order` for the step to 0. Algorithms 1 and 2 of the paper, r = 1/2 and r_1,
    r_2 = 1/3, 2/3.

    order: DPM-Solver-1, -2 or -3.
    fast: N is the number of evaluations: steps of order 3, each over three of the intervals, and what remains with orders 2
        and 1 ("DPM-Solver-fast", Section 3.4); then only the ends of its steps are yielded.
    """
    x, times = z, ts.tolist()
    for t, u, k in plan_steps(times, order, fast):
        e = (x - denoise(x, t, labels)) / t  # the noise that the teacher sees
        if k == 1:
            x = x + (u - t) * e
        elif k == 2:
            s = math.sqrt(t * u)  # the middle in lambda
            y = x + (s - t) * e
            x = x + (u - t) * (y - denoise(y, s, labels)) / s
        else:
            h = math.log(t / u)
            s1, s2 = t * math.exp(-h / 3), t * math.exp(-2 * h / 3)
            y = x + (s1 - t) * e
            d1 = (y - denoise(y, s1, labels)) / s1 - e
            y = x + (s2 - t) * e - 2 * s2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
            d2 = (y - denoise(y, s2, labels)) / s2 - e
            x = x + (u - t) * e - 1.5 * u * (math.expm1(h) / h - 1) * d2
        yield u, x


def plan_steps(times: list[float], order: int, fast: bool) -> list[tuple[float, float, int]]:
    """List (from, to, order) of every step; the one to 0, where lambda is infinite, is of the first order.

    times: N + 1, descending. order, fast: as in `dpm_solver`; fast with another order than 3 raises PidistillError.
    """
    if fast and order != 3:
        raise PidistillError(f"dpm_solver: the fast schedule has orders of its own; leave order={order} out")
    if not fast:
        return [(t, u, order if u > 0 else 1) for t, u in pairwise(times)]
    last = [1] if times[-1] == 0 else []
    budget = len(times) - 1 - len(last)
    thirds, rest = divmod(budget, 3)
    if rest == 0 and budget:
        orders = [3] * (thirds - 1) + [2, 1]
    else:
        orders = [3] * thirds + ([rest] if rest else [])
    ends = [times[k] for k in accumulate([*orders, *last], initial=0)]
    return [(t, u, k) for (t, u), k in zip(pairwise(ends), [*orders, *last])]
