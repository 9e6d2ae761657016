"""DDPM's ancestral sampling (Ho et al., 2020) draws from q(x_u | x_t, x_0 = D), of mean (u/t)^2 x + (1 - (u/t)^2) D."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

from torch import Tensor


def ddpm(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None, *,
         variance: Literal["small", "large"] = "small",
         draw: Callable[[int], Tensor] | None = None) -> Iterator[tuple[float, Tensor]]:
    """Draw from z (B, ...) at ts[0] over ts (N+1,), descending; yield (t, x). N evaluations.

    The mean is Eq. (7) of the paper, over alpha_u. The last draw, to ts[-1] = 0, adds no noise.

    variance: of the posterior, u^2 (t^2 - u^2)/t^2 (`small`), or beta = (t^2 - u^2)(1 + u^2)/(1 + t^2) of the forward step
        of a variance preserving model (`large`), both over alpha_u^2.
    """
    x, times = z, ts.tolist()
    for k, (t, u) in enumerate(pairwise(times)):
        keep = (u / t) ** 2
        x = keep * x + (1 - keep) * denoise(x, t, labels)
        scale = u**2 / t**2 if variance == "small" else (1 + u**2) / (1 + t**2)
        if u > 0 and draw is not None:
            x = x + math.sqrt(scale * (t**2 - u**2)) * draw(k)
        yield u, x
