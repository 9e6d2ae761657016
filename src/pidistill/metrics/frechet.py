"""Frechet distance between Gaussians fitted to two sets of features (Heusel et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """features (N, d) -> mean (d,) and unbiased covariance (d, d), both float64."""
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T)


def frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) for (mean (d,), covariance (d, d)) in float64.

    The symmetric form has real, non-negative eigenvalues also where the covariances are singular.
    """
    (mu_a, cov_a), (mu_b, cov_b) = a, b
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def relative_frechet(a: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> float:
    """FD: the Frechet distance in per cent of the reference's variance, 100 FD / tr(Sigma_ref); free of the scale."""
    return 100 * frechet(a, reference) / float(reference[1].trace())
