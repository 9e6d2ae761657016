"""The Frechet distance compares Gaussians fitted to two sets of features (Heusel et al., 2017): FID, FD-DINOv2 and others.

FD = |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pidistill.core.tensors import home_of_float64, to_float64
from pidistill.evaluation.metrics.base import ImageBatch, Metric, Reference


class Frechet(Metric):
    """The metric is `fid` or `fd_dinov2`, or `fd` of any other network, in per cent of the reference's variance."""

    def __init__(self, num: int, width: int, reference: Reference | None, key: str = "fd",
                 device: torch.device | str = "cpu"):
        super().__init__(num, width, reference, key)
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=home_of_float64(torch.device(device)))
        self.state = {"n": zeros(1), "sum": zeros(width), "outer": zeros(width, width)}

    def add(self, batch: ImageBatch) -> None:
        assert batch.features is not None
        f = to_float64(batch.features).to(self.state["sum"].device)
        self.state["n"] += len(f)
        self.state["sum"] += f.sum(dim=0)
        self.state["outer"] += f.T @ f

    def fit_gaussian(self) -> tuple[Tensor, Tensor]:
        """Fit a Gaussian to the features so far: mean (d,) and unbiased covariance (d, d), float64, CPU, as EDM's fid.py."""
        n, total, outer = (self.state[key].cpu() for key in ("n", "sum", "outer"))
        mean = total / n
        return mean, (outer - n * mean.outer(mean)) / (n - 1)

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        assert self.reference is not None
        data = (self.reference.mean, self.reference.covariance)
        distance = relative_frechet if self.key == "fd" else frechet_distance
        return {self.key: distance(self.fit_gaussian(), data)}


def fit_gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to features (N, d): mean (d,) and unbiased covariance (d, d), both float64."""
    features = to_float64(features)
    return features.mean(dim=0), torch.cov(features.T)


def frechet_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Compute FD of two Gaussians (mean (d,), covariance (d, d)), in float64.

    The last trace is the sum of the singular values of A^1/2 B^1/2. As the square roots of eigenvalues, those that are 0 (of
    singular covariances) would each be wrong by the root of the rounding error.
    """
    (mu_a, cov_a), (mu_b, cov_b) = a, b
    cross = torch.linalg.svdvals(factorise(cov_a).T @ factorise(cov_b)).sum()
    return float((mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def factorise(covariance: Tensor) -> Tensor:
    """Factorise a covariance (d, d) = R R^T into R (d, r), without the directions in which it is 0 up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return vectors[:, positive] * values[positive].sqrt()


def relative_frechet(a: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> float:
    """Compute FD in per cent of the reference's variance, 100 FD / tr(Sigma_ref), which no scale of the features changes."""
    return 100 * frechet_distance(a, reference) / float(reference[1].trace())
