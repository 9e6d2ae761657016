"""UniPC (Zhao et al., 2023), in the data prediction: x(u) = (u/t) x + (1 - u/t) (D + sum_m rho_m (D_m - D)/r_m).

D_m are images at other times s_m, r_m = log(t/s_m)/h, h = log(t/u). UniP-p predicts the next state from the images of the
times before; UniC-p corrects it with the image at u itself, of r = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import Tensor


def unipc(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None, *,
          order: Literal[1, 2, 3] = 2) -> Iterator[tuple[float, Tensor]]:
    """Integrate from z (B, ...) at ts[0] over ts (N+1,), descending, which may end in 0. N evaluations.

    Yields (t, x), the predicted states before correction. The corrector uses the evaluation that the next step needs anyway.
    The first steps are of lower order, and so are the last before 0 (the paper's setting for few steps); the last state is
    not corrected.

    order: p, the number of images that the predictor looks at.
    """
    x, base, times = z, z, ts.tolist()
    history: list[tuple[float, Tensor]] = []  # (t, D), newest first
    p = 0
    for k, (t, u) in enumerate(pairwise(times)):
        D = denoise(x, t, labels)
        if history:
            x = advance(base, history[:p], t, D)
        history = [(t, D), *history[:order - 1]]
        p = min(order, len(times) - 1 - k) if times[-1] == 0 else order
        base = x
        x = advance(base, history[:p], u)
        yield u, x


def advance(x: Tensor, history: list[tuple[float, Tensor]], u: float, corrector: Tensor | None = None) -> Tensor:
    """Go from x at the newest time to u by Eq. (3) of the paper or, with the image at u, by Eq. (5).

    history: (t, D) of the last times, newest first.
    u: the next time.
    corrector: the image (B, ...) at u, in the state that Eq. (3) gave.
    """
    (t, D), *older = history
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
    """Solve sum_m rho_m r_m^(n-1) = -h n! phi_{n+1}(-h)/B(-h), n = 1 ... p, for rho (p,).

    phi are the functions of the exponential integrators, and B(h) = e^h - 1 (`bh2`).
    """
    if len(ratios) == 1:
        return [0.5]  # first and second order do not depend on it: the paper's choice
    phi, b = math.expm1(-h) / -h - 1, []
    for n in range(1, len(ratios) + 1):
        b.append(phi * math.factorial(n) / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(n + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, b).tolist()
