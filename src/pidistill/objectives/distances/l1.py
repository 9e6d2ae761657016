"""L1 distance."""

from torch import Tensor


class L1:
    """Mean absolute difference over a sample's elements, (B, ...) and (B, ...) -> (B,)."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().flatten(1).mean(dim=1)
