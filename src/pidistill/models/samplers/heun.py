"""Heun's second-order method is x(u) = x(t) + (u - t) (d(t) + d(u))/2 with d = (x - D)/t, d(u) where Euler's step ends.

With noise in every step it is EDM's stochastic sampler (Karras et al., 2022, Algorithms 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor

Positive = Annotated[float, Field(ge=0)]


def heun(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None, *,
         churn: Positive = 0.0, churn_min: Positive = 0.0, churn_max: Positive = math.inf, churn_noise: Positive = 1.0,
         draw: Callable[[int], Tensor] | None = None) -> Iterator[tuple[float, Tensor]]:
    """Integrate from z (B, ...) at ts[0] over ts (N+1,), descending, which may end in 0; yield (t, x).

    2 N evaluations; 2 N - 1 where ts ends in 0, whose last step is Euler's.

    churn: S_churn of Algorithm 2; 0 is deterministic. Before a step from t noise is added up to (1 + gamma) t,
        gamma = min(S_churn / N, sqrt 2 - 1).
    churn_min, churn_max: S_tmin and S_tmax, the range of t in which noise is added.
    churn_noise: S_noise, by which the noise is multiplied. EDM's four for ImageNet 64 are 40, 0.05, 50, 1.003.
    """
    x, times = z, ts.tolist()
    gamma = min(churn / max(len(times) - 1, 1), math.sqrt(2) - 1)
    for k, (t, u) in enumerate(pairwise(times)):
        if gamma > 0 and draw is not None and churn_min <= t <= churn_max:
            raised = t * (1 + gamma)
            x = x + math.sqrt(raised**2 - t**2) * churn_noise * draw(k)
            t = raised
        d = (x - denoise(x, t, labels)) / t
        y = x + (u - t) * d
        if u > 0:  # the slope at 0 is 0/0
            d = (d + (y - denoise(y, u, labels)) / u) / 2
            y = x + (u - t) * d
        x = y
        yield u, x
