"""UniPC's step is exact where the image is a polynomial of its degree in lambda = -log t."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.models.samplers.unipc import advance, solve_coefficients


def image(t: float, degree: int) -> torch.Tensor:
    """A polynomial in log t, of two numbers."""
    powers = torch.tensor([[0.3, 1.0, -0.7][:degree + 1], [-1.0, 0.4, 0.2][:degree + 1]], dtype=torch.float64)
    return (powers * math.log(t) ** torch.arange(degree + 1, dtype=torch.float64)).sum(dim=1)


def solve(x: torch.Tensor, t: float, u: float, degree: int) -> torch.Tensor:
    """x(u) = (u/t) x + u int_u^t D(s)/s^2 ds, by Simpson's rule in log s."""
    s = torch.linspace(math.log(u), math.log(t), 4001, dtype=torch.float64).exp()
    values = torch.stack([image(v, degree) for v in s.tolist()]) / s[:, None]
    weights = torch.full((4001, 1), 2.0, dtype=torch.float64)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    return (u / t) * x + u * (weights * values).sum(dim=0) * math.log(t / u) / 4000 / 3


@pytest.mark.parametrize("nodes, corrects", [((2.0, 3.0, 7.0), False), ((2.0, 3.0), True), ((2.0, 3.0, 7.0), True)])
def test_a_step_integrates_polynomials_in_log_t(nodes, corrects):
    """Of degree 2, by three images: those of earlier times and, with the corrector, the one at u itself."""
    x, u = torch.tensor([1.5, -2.0], dtype=torch.float64), 1.2
    step = advance(x, [(t, image(t, 2)) for t in nodes], u, image(u, 2) if corrects else None)
    torch.testing.assert_close(step, solve(x, nodes[0], u, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("u", [1.2, 0.0])
def test_a_constant_image_is_drawn_exactly(u):
    """x(u) = D + (u/t) (x - D); at 0 that is the image, whatever the history."""
    x, D = torch.tensor([1.5, -2.0], dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64)
    for history in ([(2.0, D)], [(2.0, D), (3.0, D)], [(2.0, D), (3.0, D), (7.0, D)]):
        torch.testing.assert_close(advance(x, history, u), D + (u / 2) * (x - D))


def test_coefficients_solve_the_papers_equations():
    """sum_m rho_m r_m^(n-1) = -h n! phi_{n+1}(-h)/B(-h), phi_2(z) = (e^z - 1 - z)/z^2, phi_3 = (phi_2 - 1/2)/z."""
    ratios, h = [-0.8, 1.0], 0.6
    rho = solve_coefficients(ratios, h)
    phi_2 = (math.exp(-h) - 1 + h) / h**2
    phi_3 = (phi_2 - 0.5) / -h
    B = math.expm1(-h)
    assert sum(rho) == pytest.approx(phi_2 * -h / B, rel=1e-12)
    assert sum(r * ratio for r, ratio in zip(rho, ratios)) == pytest.approx(2 * phi_3 * -h / B, rel=1e-12)
    assert solve_coefficients([-0.8], h) == [0.5]
