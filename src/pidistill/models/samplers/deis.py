"""DEIS with Adams-Bashforth extrapolation, tAB-DEIS (Zhang & Chen, 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import Tensor

POINTS, QUADRATURE = np.polynomial.legendre.leggauss(64)
BETA_D, BETA_MIN = 19.9, 0.1  # the linear schedule of Song et al. (2021)


def deis(denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None, *,
         order: Literal[1, 2, 3] = 3,
         variable: Literal["vp", "t", "log"] = "vp") -> Iterator[tuple[float, Tensor]]:
    """x(u) = x(t) + sum_j C_j e_j: the noise seen at the last `order` times, extrapolated by a polynomial and integrated.

    variable: in which it is a polynomial: the time of the linear variance preserving SDE (`vp`: the paper's tAB, for every
    teacher, since that time is a function of the noise level), the noise level t itself (`t`: rhoAB), or log t (`log`, as in
    diffusers). order 3 is the 3-DEIS of the paper's Table 1. The first steps are of lower order, a step to 0 of the first.
    z: (B, ...) at ts[0]; ts: (N+1,), descending, may end in 0. Yields (t, x). N evaluations.
    """
    x, times = z, ts.tolist()
    seen: list[tuple[float, Tensor]] = []  # (t, noise), newest first
    for t, u in pairwise(times):
        seen = [(t, (x - denoise(x, t, labels)) / t), *seen[:order - 1]]
        for weight, (_, e) in zip(integrate_lagrange([t for t, _ in seen[:order if u > 0 else 1]], t, u, variable), seen):
            x = x + weight * e
        yield u, x


def integrate_lagrange(nodes: list[float], t: float, u: float, variable: str) -> list[float]:
    """C_j = integral from t to u of the Lagrange polynomial of node j, over the noise level; float64."""
    if len(nodes) == 1:
        return [u - t]
    h = math.log(u / t)
    s = t * np.exp(h * (POINTS + 1) / 2)  # nodes in log t, where the integrand is smooth over any range
    at, known = change_variable(s, variable), change_variable(np.array(nodes), variable)
    return [float((QUADRATURE * (h / 2) * s * np.prod([(at - b) / (a - b) for b in np.delete(known, j)], axis=0)).sum())
            for j, a in enumerate(known)]


def change_variable(t: np.ndarray, variable: str) -> np.ndarray:
    """The polynomial's variable at noise levels t."""
    if variable == "vp":
        return (np.sqrt(BETA_MIN**2 + 2 * BETA_D * np.log1p(t**2)) - BETA_MIN) / BETA_D
    return np.log(t) if variable == "log" else t
