"""DEIS with Adams-Bashforth extrapolation, tAB-DEIS (Zhang & Chen, 2023): x(u) = x(t) + sum_j C_j e_j.

e_j is the noise seen at the last times; a polynomial extrapolates it, whose integral from t to u gives the weights C_j.
"""

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
    """Integrate from z (B, ...) at ts[0] over ts (N+1,), descending, which may end in 0; yield (t, x). N evaluations.

    The first steps are of lower order, and a step to 0 is of the first.

    order: number of times that the polynomial goes through; 3 is the 3-DEIS of the paper's Table 1.
    variable: of the polynomial: the time of the linear variance preserving SDE (`vp`: the paper's tAB, for every teacher,
        since that time is a function of the noise level), the noise level t itself (`t`: rhoAB), or log t (`log`, as in
        diffusers).
    """
    x, times = z, ts.tolist()
    history: list[tuple[float, Tensor]] = []  # (t, noise), newest first
    for t, u in pairwise(times):
        history = [(t, (x - denoise(x, t, labels)) / t), *history[:order - 1]]
        nodes = [t for t, _ in history[:order if u > 0 else 1]]
        for C, (_, e) in zip(integrate_lagrange(nodes, t, u, variable), history):
            x = x + C * e
        yield u, x


def integrate_lagrange(nodes: list[float], t: float, u: float, variable: str) -> list[float]:
    """Compute C_j, the integral from t to u of node j's Lagrange polynomial over the noise level, in float64.

    nodes: noise levels that the polynomial goes through. variable: as in `deis`.
    """
    if len(nodes) == 1:
        return [u - t]
    h = math.log(u / t)
    s = t * np.exp(h * (POINTS + 1) / 2)  # nodes in log t, where the integrand is smooth over any range
    v, v_nodes = change_variable(s, variable), change_variable(np.array(nodes), variable)
    return [float((QUADRATURE * (h / 2) * s * np.prod([(v - b) / (a - b) for b in np.delete(v_nodes, j)], axis=0)).sum())
            for j, a in enumerate(v_nodes)]


def change_variable(t: np.ndarray, variable: str) -> np.ndarray:
    """Compute the polynomial's variable, as in `deis`, at noise levels t (n,)."""
    if variable == "vp":
        return (np.sqrt(BETA_MIN**2 + 2 * BETA_D * np.log1p(t**2)) - BETA_MIN) / BETA_D
    return np.log(t) if variable == "log" else t
