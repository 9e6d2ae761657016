"""UniPC (Zhao et al., 2023), in the data prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import Tensor


def unipc(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None, *,
          order: Literal[1, 2, 3] = 2) -> Iterator[tuple[float, Tensor]]:
    """UniP-p predicts the next state from the images seen before; UniC-p corrects it with the image seen there.

    B(h) = e^h - 1 (`bh2`). The corrector uses the evaluation that the next step needs anyway: N evaluations. The first steps
    are of lower order, and so are the last before 0 (the paper's setting for few steps); the last
    state is not corrected.
    z: (B, ...) at ts[0]; ts: (N+1,), descending, may end in 0. Yields (t, x), the predicted states before correction.
    """
    x, base, times = z, z, ts.tolist()
    seen: list[tuple[float, Tensor]] = []  # (t, D), newest first
    p = 0
    for k, (t, u) in enumerate(pairwise(times)):
        D = denoise(x, t, labels)
        if seen:
            x = advance(base, seen[:p], t, D)
        seen = [(t, D), *seen[:order - 1]]
        p = min(order, len(times) - 1 - k) if times[-1] == 0 else order
        base = x
        x = advance(base, seen[:p], u)
        yield u, x


def advance(x: Tensor, seen: list[tuple[float, Tensor]], u: float, corrector: Tensor | None = None) -> Tensor:
    """From x at the newest time seen to u: Eq. (3) of the paper; with the image at u, Eq. (5)."""
    (t, D), *older = seen
    x = (u / t) * x + (1 - u / t) * D
    if u == 0 or (corrector is None and not older):
        return x
    h = math.log(t / u)
    ratios = [math.log(t / s) / h for s, _ in older]
    slopes = [(image - D) / r for r, (_, image) in zip(ratios, older)]
    if corrector is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, corrector - D]
    for rho, slope in zip(solve_coefficients(ratios, h), slopes):
        x = x + (1 - u / t) * rho * slope
    return x


def solve_coefficients(ratios: list[float], h: float) -> list[float]:
    """rho of sum_m rho_m r_m^(n-1) = n! phi_{n+1}(-h)/B(-h), n = 1 ... p, phi of the exponential integrators."""
    if len(ratios) == 1:
        return [0.5]  # first and second order do not depend on it: the paper's choice
    phi, b = math.expm1(-h) / -h - 1, []
    for n in range(1, len(ratios) + 1):
        b.append(phi * math.factorial(n) / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(n + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, b).tolist()
