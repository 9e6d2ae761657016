"""The Frechet distance compares Gaussians fitted to two sets of features (Heusel et al., 2017): FID, FD-DINOv2 and others.

FD = |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

It is 0 or more. What rounding may take from it is cut off; what is further below is no distance, and is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import home_of_float64, to_float64
from pidistill.evaluation.metrics.base import ImageBatch, Metric, Reference

LOST = 1e-3  # of the terms of a distance: what negative eigenvalues may take; those of files in float32 take 1e-4
NO_VARIANCE = 1e-10  # of the features' mean square: float32 leaves 1e-12 where all images are equal


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

    def doubts(self) -> list[str]:
        width, doubts = len(self.state["sum"]), [describe_few(self.num, len(self.state["sum"]), "the model")]
        if self.reference and self.reference.num:
            doubts.append(describe_few(self.reference.num, width, self.reference.source or "the reference"))
        return [doubt for doubt in doubts if doubt]

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        assert self.reference is not None
        reference = self.reference
        data, root = (reference.mean, reference.covariance), factorise(reference.covariance)
        width, rank = root.shape
        if rank <= width // 2 and not (reference.num and reference.num <= width):  # which was said before
            self.remarks = [f"the reference {reference.source} varies in {rank} of {width} directions of the features, as "
                            f"{rank + 1} different images would: distances to it mean little"]
        distance = relative_frechet if self.key == "fd" else frechet_distance
        return {self.key: distance(self.fit_gaussian(), data, root)}


def describe_few(num: int, width: int, what: str) -> str:
    """Say that a covariance cannot have full rank, so that its distances are far from those of more images; or nothing.

    num: of images. width: number of features. what: the owner of the images.
    """
    if num > width:
        return ""
    return (f"{num} images of {what} for {width} features: their covariance is singular, and distances are biased; use more "
            f"than {width}, better 10 times as many")


def fit_gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to features (N, d): mean (d,) and unbiased covariance (d, d), both float64."""
    features = to_float64(features)
    return features.mean(dim=0), torch.cov(features.T)


def has_variance(mean: Tensor, covariance: Tensor) -> bool:
    """Tell whether features of a mean (d,) and a covariance (d, d) vary by more than rounding."""
    return bool(covariance.trace().abs() > NO_VARIANCE * mean.square().sum())


def frechet_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], root: Tensor | None = None) -> float:
    """Compute FD of two Gaussians (mean (d,), covariance (d, d)), in float64. root: of b's covariance, if it is known.

    Raises PidistillError for matrices that are no covariances: whose negative eigenvalues are more than rounding.

    The last trace is the sum of the singular values of A^1/2 B^1/2. As the square roots of eigenvalues, those that are 0 (of
    singular covariances) would each be wrong by the root of the rounding error.
    """
    (mu_a, cov_a), (mu_b, cov_b) = a, b
    roots = factorise(cov_a), factorise(cov_b) if root is None else root
    size = (mu_a - mu_b).square().sum() + sum(factor.square().sum() for factor in roots)
    size = size + NO_VARIANCE * (mu_a.square().sum() + mu_b.square().sum())  # where nothing varies, all is rounding
    for cov, factor in zip((cov_a, cov_b), roots):
        if factor.square().sum() - cov.trace() > LOST * size:  # the eigenvalues that were left out
            raise PidistillError("no Frechet distance: sigma has negative eigenvalues, as no covariance has")
    cross = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    distance = (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    if not distance >= -LOST * size:
        raise PidistillError(f"no Frechet distance: {float(distance):.4g} came out, and it is 0 or more")
    return float(distance.clamp(min=0))


def factorise(covariance: Tensor) -> Tensor:
    """Factorise a covariance (d, d) = R R^T into R (d, r), without the directions in which it is 0 up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return vectors[:, positive] * values[positive].sqrt()


def relative_frechet(a: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], root: Tensor | None = None) -> float:
    """Compute FD in per cent of the reference's variance, 100 FD / tr(Sigma_ref), which no scale of the features changes.

    Raises PidistillError for a reference without variance. root: of its covariance, if it is known.
    """
    if not has_variance(*reference):
        raise PidistillError("no FD in per cent of the reference's variance: it has none, its images are all the same")
    return 100 * frechet_distance(a, reference, root) / float(reference[1].trace())
