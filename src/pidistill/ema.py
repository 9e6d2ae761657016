"""Exponential moving averages of weights, at several rates at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EMA:
    """Averages of named networks. `networks[rate]` holds copies by name, in evaluation mode, without gradients.

    A rate ramps up as (1 + step) / (10 + step), so that the first steps do not weigh for ever. Rate 0 is the weights
    themselves.
    """

    def __init__(self, networks: dict[str, nn.Module], rates: Sequence[float]):
        self.networks = {rate: {name: copy.deepcopy(net).eval().requires_grad_(False) for name, net in networks.items()}
                         for rate in rates}
        self._values: list[Tensor] = [p for net in networks.values() for p in net.parameters()]
        self._averages: dict[float, list[Tensor]] = {
            rate: [p for copy_ in copies.values() for p in copy_.parameters()] for rate, copies in self.networks.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after step number `step`, counted from 0."""
        for rate, averages in self._averages.items():
            torch._foreach_lerp_(averages, self._values, 1 - min(rate, (1 + step) / (10 + step)))
