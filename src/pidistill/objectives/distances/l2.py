"""Squared L2 distance."""

from torch import Tensor


class L2:
    """Mean square over a sample's elements, (B, ...) and (B, ...) -> (B,)."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().flatten(1).mean(dim=1)
