"""DDIM (Song et al., 2021) goes from t to u by x(u) = D + sqrt(u^2 - s^2) (x - D)/t + s n, s = eta u sqrt(t^2 - u^2)/t."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor


def ddim(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None, *,
         eta: Annotated[float, Field(ge=0, le=1)] = 0.0,
         draw: Callable[[int], Tensor] | None = None) -> Iterator[tuple[float, Tensor]]:
    """Integrate from z (B, ...) at ts[0] over ts (N+1,), descending, which may end in 0; yield (t, x). N evaluations.

    The equation above is Eq. (12) and (16) of the paper, over alpha_u.

    eta: 0 is Euler's method in the noise level, 1 is DDPM's ancestral sampling.
    """
    x, times = z, ts.tolist()
    for k, (t, u) in enumerate(pairwise(times)):
        D = denoise(x, t, labels)
        s = eta * u * math.sqrt(t**2 - u**2) / t
        x = D + (math.sqrt(u**2 - s**2) / t) * (x - D)
        if s > 0 and draw is not None:
            x = x + s * draw(k)
        yield u, x
