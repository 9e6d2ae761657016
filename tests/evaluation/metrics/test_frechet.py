"""Frechet distance against closed forms and the usual matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from pidistill.evaluation.metrics.frechet import fit_gaussian, frechet_distance, relative_frechet


def random_statistics(seed: int, d: int = 6, rank: int | None = None):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(d, rank or d, dtype=torch.float64, generator=g)
    return torch.randn(d, dtype=torch.float64, generator=g), a @ a.T


@pytest.mark.parametrize("seed", range(3))
def test_against_scipys_square_root(seed):
    (m, A), (n, B) = random_statistics(seed), random_statistics(seed + 10)
    root = scipy.linalg.sqrtm(A.numpy() @ B.numpy())
    expected = ((m - n) ** 2).sum() + np.trace(A + B) - 2 * np.trace(root).real
    assert frechet_distance((m, A), (n, B)) == pytest.approx(float(expected), rel=1e-9)


def test_one_dimension():
    """(mu - nu)^2 + (s - r)^2."""
    mu, nu = (torch.tensor([v], dtype=torch.float64) for v in (1.0, 4.0))
    var = lambda s: torch.tensor([[s**2]], dtype=torch.float64)
    assert frechet_distance((mu, var(2.0)), (nu, var(5.0))) == pytest.approx(3**2 + 3**2)


def test_singular_covariances():
    """Features that are always 0 (dead units) have no variance; scipy's root of the product is unreliable there."""
    (m, A), (n, B) = random_statistics(0, rank=2), random_statistics(1, rank=3)
    assert frechet_distance((m, A), (m, A)) == pytest.approx(0, abs=1e-6)
    jitter = 1e-10 * torch.eye(6, dtype=torch.float64)
    assert frechet_distance((m, A), (n, B)) == pytest.approx(frechet_distance((m, A + jitter), (n, B + jitter)), rel=1e-3)
    zero = torch.zeros(6, 6, dtype=torch.float64)
    assert frechet_distance((m, zero), (n, B)) == pytest.approx(float((m - n).square().sum() + B.trace()))


def test_symmetric():
    a, b = random_statistics(3), random_statistics(4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_relative_distance_is_free_of_the_scale():
    a, b = torch.randn(300, 4, dtype=torch.float64), torch.randn(200, 4, dtype=torch.float64) * 1.5 + 0.3
    value = relative_frechet(fit_gaussian(a), fit_gaussian(b))
    assert relative_frechet(fit_gaussian(a * 7), fit_gaussian(b * 7)) == pytest.approx(value, rel=1e-9)
    distance = frechet_distance(fit_gaussian(a), fit_gaussian(b))
    assert value == pytest.approx(100 * distance / fit_gaussian(b)[1].trace().item())


def test_statistics_are_numpys_in_float64():
    x = torch.randn(50, 3) + 1e4  # float32 sums would lose the covariance
    mean, cov = fit_gaussian(x)
    assert mean.dtype == cov.dtype == torch.float64
    np.testing.assert_allclose(cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(mean, x.double().mean(0), rtol=1e-12)
