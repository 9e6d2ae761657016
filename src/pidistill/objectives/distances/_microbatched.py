"""A function of many samples, some samples at a time, with the gradient of each part formed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Compare = Callable[[Tensor, Tensor], Tensor]


def in_parts(compare: Compare, prediction: Tensor, target: Tensor, k: int | None) -> Tensor:
    """compare(prediction, target), (B, ...) twice -> (B,), on k samples at a time; None: on all at once.

    For a `compare` whose value of a sample depends on that sample alone. Its maps are in memory for k samples, and none is
    computed twice: the gradient of a part is taken before the next part begins, and kept in place of the graph.
    """
    if k is None or len(prediction) <= k:
        return compare(prediction, target)
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (prediction, target)]
    if not any(wanted):
        return torch.cat([compare(*pair) for pair in zip(prediction.split(k), target.split(k), strict=True)])
    return _InParts.apply(compare, k, wanted, prediction, target)


class _InParts(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, compare: Compare, k: int, wanted: list[bool], *whole: Tensor) -> Tensor:
        values = []
        slopes = [torch.empty_like(x) if want else None for x, want in zip(whole, wanted, strict=True)]
        for first in range(0, len(whole[0]), k):
            part = slice(first, first + k)
            pair = [x[part].detach().requires_grad_(want) for x, want in zip(whole, wanted, strict=True)]
            with torch.enable_grad():
                value = compare(*pair)
                # of the sum: the slope of a sample's value is in that sample's place
                found = iter(torch.autograd.grad(value.sum(), [x for x in pair if x.requires_grad]))
            values.append(value.detach())
            for slope in slopes:
                if slope is not None:
                    slope[part] = next(found)
        ctx.save_for_backward(*slopes)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(None if slope is None else gradient.reshape(-1, *[1] * (slope.ndim - 1)) * slope
                                   for slope in ctx.saved_tensors)
