"""The weights of DEIS integrate polynomials exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.models.samplers.deis import integrate_lagrange


@pytest.mark.parametrize("variable, level", [("vp", lambda c: np.sqrt(np.expm1(9.95 * c**2 + 0.1 * c))), ("log", np.exp),
                                             ("t", lambda c: c)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_integrates_polynomials_in_its_variable(order, variable, level):
    """level: variable -> t; `vp` is the time of dx = -beta x/2 dt + sqrt(beta) dW, beta from 0.1 to 20 (Song et al.)."""
    c = {"vp": [0.1, 0.05, 0.02, 0.005], "log": [1.0, 0.4, 0.1, -0.5], "t": [9.0, 5.0, 2.0, 1.0]}[variable]
    (*nodes, end), fine = c[3 - order:], np.linspace(c[2], c[3], 20_001)
    levels = [float(level(node)) for node in reversed(nodes)]
    weights = integrate_lagrange(levels, levels[0], float(level(end)), variable)
    for power in range(order):
        integral = sum(w * node**power for w, node in zip(weights, reversed(nodes)))
        exact = torch.trapezoid(torch.from_numpy(fine**power), torch.from_numpy(level(fine))).item()
        assert integral == pytest.approx(exact, rel=1e-6)
