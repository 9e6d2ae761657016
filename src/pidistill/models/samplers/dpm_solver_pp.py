"""DPM-Solver++(2M) (Lu et al., 2022b), multistep: x(u) = (u/t) x + (1 - u/t) (D + h/(2 h') (D - D')).

D' is the image at the time before t, h' the step from there and h the step to u, in lambda = -log t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor


def dpm_solver_pp(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor,
                  labels: Tensor | None = None) -> Iterator[tuple[float, Tensor]]:
    """Integrate from z (B, ...) at ts[0] over ts (N+1,), descending, which may end in 0; yield (t, x). N evaluations.

    Algorithm 2 of the paper, over alpha_u; the first step and one to 0 are of the first order.
    """
    x, times = z, ts.tolist()
    last: tuple[float, Tensor] | None = None  # the time before t, and D there
    for t, u in pairwise(times):
        D = denoise(x, t, labels)
        guess = D
        if last is not None and u > 0:
            guess = D + (math.log(t / u) / (2 * math.log(last[0] / t))) * (D - last[1])
        x = (u / t) * x + (1 - u / t) * guess
        last = (t, D)
        yield u, x
