"""Averages whose weights follow a power of time, and the combination of stored ones that is nearest to another.

Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), Section 3 and Appendix C:

    theta_gamma(t) = integral_0^t p_{gamma,t}(tau) theta(tau) dtau,   p_{gamma,t}(tau) = (gamma+1) tau^gamma / t^(gamma+1)
    a_t = b_t a_{t-1} + (1 - b_t) theta_t,   b_t = (1 - 1/t)^(gamma+1)          the same, theta_k standing from k-1 to k
    sigma_rel = sqrt((gamma+1) / ((gamma+2)^2 (gamma+3)))                       the profile's standard deviation over t
    <p_{a,s}, p_{b,t}> = (a+1)(b+1)/(a+b+1) m^(a+b+1) / (s^(a+1) t^(b+1)),   m = min(s, t)

Of stored profiles p_i the combination x minimises |sum_i x_i p_i - p|, Algorithm 3, and here sum_i x_i = 1: it is an average
again, so that weights which do not move are kept, and with d = sum_i x_i p_i - p any theta_0 gives the bound

    |sum_i x_i a_i - a| <= |d| sqrt(sum_k |theta_k - theta_0|^2)              Cauchy-Schwarz; a step's weight is its integral
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pidistill.core.errors import PidistillError

NARROWEST, WIDEST = 0.001, 12**-0.5  # relative widths; at the latter gamma is 0, the mean of all weights so far


class Profile(NamedTuple):
    """p_{gamma,t}, of an average after t steps."""

    gamma: float
    t: int


class Width(NamedTuple):
    """An average by its relative width, sigma_rel, and the steps after which it is taken; None: after the last."""

    value: float
    step: int | None = None

    def __str__(self) -> str:
        return f"width:{self.value}" + ("" if self.step is None else f"@{self.step}")


Average = float | Width  # a constant rate, or the width of a profile


def parse_average(text: str) -> Average:
    """Parse an averaging rate, `0.999`, or a width, `width:0.12`, or `width:0.12@3000` after so many steps."""
    try:
        if not text.strip().startswith("width:"):
            return float(text)
        value, sign, step = text.strip().removeprefix("width:").partition("@")
        width = Width(float(value), int(step) if sign else None)
    except ValueError:
        raise PidistillError(f"--ema takes rates such as 0.999,0.9999, got {text!r}; or widths of profiles that the run has "
                             "stored: width:0.12, or width:0.12@3000 after so many steps") from None
    if not NARROWEST <= width.value <= WIDEST:
        raise PidistillError(f"the width of a profile must be {NARROWEST} to {WIDEST:.4f}, got {value}")
    return width


def solve_gamma(width: float) -> float:
    """Solve sigma_rel(gamma) = width for gamma: the one root that is not negative of a cubic, Algorithm 2."""
    s = width**-2  # (gamma+2)^2 (gamma+3) = s (gamma+1)
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max()))


def multiply_profiles(ps: Sequence[Profile], qs: Sequence[Profile]) -> np.ndarray:
    """Compute the inner products of profiles, (len(ps), len(qs)) float64, in units of 1/step."""
    (a, s), (b, t) = (np.array(profiles, dtype=np.float64).T for profiles in (ps, qs))
    a, s = a[:, None], s[:, None]
    m = np.minimum(s, t)
    return (a + 1) * (b + 1) / (a + b + 1) * (m / s) ** a * (m / t) ** b * m / (s * t)


def combine_profiles(stored: Sequence[Profile], asked: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    """Find the combinations of stored profiles that are nearest to those asked for: weights (n, m), each m adding to 1.

    Gives also |d| / |p|, (m,): the r.m.s. error over the profile's own. Where weights are independent noise around a mean,
    it is the standard deviation of the error over the average's own. A width that is a part x off has about x / sqrt(2).

    stored: n profiles, all different. asked: m profiles.
    """
    gram, right = multiply_profiles(stored, stored), multiply_profiles(stored, asked)
    own = np.array([multiply_profiles([p], [p]).item() for p in asked])
    norms, n = np.sqrt(gram.diagonal()), len(stored)
    # Profiles of unit norm. What is added is above the rounding of the matrix, which many snapshots make nearly singular: so
    # weights stay small where the profiles are nearly the same.
    matrix = gram / np.outer(norms, norms) + 8 * n * np.finfo(np.float64).eps * np.eye(n)
    solved = np.linalg.solve(matrix, np.column_stack([right / norms[:, None], 1 / norms])) / norms[:, None]
    free, shift = solved[:, :-1], solved[:, -1:]
    x = free + shift * (1 - free.sum(0)) / shift.sum()  # Lagrange's multiplier of sum_i x_i = 1
    squared = (x * (gram @ x - 2 * right)).sum(0) + own
    return x, np.sqrt(np.maximum(squared, 0) / own)
