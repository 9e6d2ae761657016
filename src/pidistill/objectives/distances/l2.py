"""Squared L2 distance: d(a, b) = sum_j (a_j - b_j)^2 / n over the n elements of a sample."""

from torch import Tensor

from pidistill.objectives.distances.base import check_shapes


class L2:
    """The distance is the mean square of the difference over a sample's elements, (B, ...) and (B, ...) -> (B,)."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_shapes(prediction, target)
        return (prediction - target).square().flatten(1).mean(dim=1)
