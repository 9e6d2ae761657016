"""L1 distance: d(a, b) = sum_j |a_j - b_j| / n over the n elements of a sample."""

from torch import Tensor

from pidistill.objectives.distances.base import check_shapes


class L1:
    """The distance is the mean absolute difference over a sample's elements, (B, ...) and (B, ...) -> (B,)."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_shapes(prediction, target)
        return (prediction - target).abs().flatten(1).mean(dim=1)
