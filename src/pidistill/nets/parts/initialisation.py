"""First weights of EDM's layers (Karras et al., 2022), by the number of inputs and outputs that a weight sums over.

Xavier's are uniform on +-gain sqrt(6 / (fan_in + fan_out)), Kaiming's on +-gain sqrt(3 / fan_in): the variance of U(-a, a)
is a^2 / 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# First weight and bias of a layer, from the weight's shape (out, in, ...), its fan-in and its fan-out.
Init = Callable[[Sequence[int], int, int], tuple[Tensor, Tensor]]


def xavier(gain: float = 1.0) -> Init:
    """Draw weights uniformly with variance 2 gain^2 / (fan_in + fan_out), and set biases to zero: Song's networks."""
    def init(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
        return (torch.rand(*shape) * 2 - 1) * math.sqrt(6 / (fan_in + fan_out)) * gain, torch.zeros(shape[0])
    return init


def kaiming(gain: float = 1.0) -> Init:
    """Draw weights and biases uniformly with variance gain^2 / fan_in: Dhariwal's networks, with gain sqrt(1/3)."""
    def init(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
        limit = gain * math.sqrt(3 / fan_in)
        return (torch.rand(*shape) * 2 - 1) * limit, (torch.rand(shape[0]) * 2 - 1) * limit
    return init


def zeros(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """Set weights and biases to zero: Dhariwal's output layers."""
    return torch.zeros(*shape), torch.zeros(shape[0])


def normal(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """Draw weights of unit variance, which is what Kaiming's times sqrt(fan_in) comes to (Dhariwal's class embedding)."""
    return torch.randn(*shape), torch.zeros(shape[0])


XAVIER = xavier()
