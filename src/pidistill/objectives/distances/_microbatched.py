"""A distance of many samples, computed on a microbatch at a time, with each microbatch's gradient formed at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pidistill.objectives.distances.base import Distance


def compare_in_microbatches(compare: Distance, prediction: Tensor, target: Tensor, k: int | None) -> Tensor:
    """Compute compare(prediction, target), (B, ...) and (B, ...) -> (B,), on k samples at a time; None: on all at once.

    The maps of k samples are in memory at a time, and none is computed twice: the gradient of a microbatch is taken before
    the next one begins, and kept in place of the graph.
    """
    if k is None or len(prediction) <= k:
        return compare(prediction, target)
    needed = [torch.is_grad_enabled() and x.requires_grad for x in (prediction, target)]
    if not any(needed):
        return torch.cat([compare(*pair) for pair in zip(prediction.split(k), target.split(k), strict=True)])
    return _MicrobatchedDistance.apply(compare, k, needed, prediction, target)


class _MicrobatchedDistance(torch.autograd.Function):
    """The function keeps each sample's slopes in place of the graph, so that the backward pass is a product."""

    @staticmethod
    def forward(ctx: Any, compare: Distance, k: int, needed: list[bool], *sides: Tensor) -> Tensor:
        values = []
        slopes = [torch.empty_like(x) if need else None for x, need in zip(sides, needed, strict=True)]
        for first in range(0, len(sides[0]), k):
            micro = slice(first, first + k)
            pair = [x[micro].detach().requires_grad_(need) for x, need in zip(sides, needed, strict=True)]
            with torch.enable_grad():
                value = compare(*pair)
                # of the sum: the slope of a sample's value is in that sample's place
                gradients = iter(torch.autograd.grad(value.sum(), [x for x in pair if x.requires_grad]))
            values.append(value.detach())
            for slope in slopes:
                if slope is not None:
                    slope[micro] = next(gradients)
        ctx.save_for_backward(*slopes)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(None if slope is None else gradient.reshape(-1, *[1] * (slope.ndim - 1)) * slope
                                   for slope in ctx.saved_tensors)
