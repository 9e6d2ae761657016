"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Averages of named networks. `networks` holds the averaged copies, in evaluation mode, without gradients.

    The rate ramps up as (1 + step) / (10 + step), so that the first steps do not weigh for ever.
    """

    def __init__(self, networks: dict[str, nn.Module], rate: float):
        self.rate = rate
        self.networks = {name: copy.deepcopy(net).eval().requires_grad_(False) for name, net in networks.items()}
        self._pairs = [(average, value) for name, net in networks.items()
                       for average, value in zip(self.networks[name].parameters(), net.parameters(), strict=True)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after step number `step`, counted from 0."""
        rate = min(self.rate, (1 + step) / (10 + step))
        averages, values = zip(*self._pairs)
        torch._foreach_lerp_(averages, values, 1 - rate)
