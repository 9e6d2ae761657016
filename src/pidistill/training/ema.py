"""Exponential moving averages of weights, at several rates at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pidistill.training.sharding import fill_skeleton, gather_whole


class EMA:
    """Averages of named networks. `networks[rate]` holds copies by name, in evaluation mode, without gradients.

    A rate ramps up as (1 + step) / (10 + step), so that the first steps do not weigh for ever. Rate 0 is the weights
    themselves. Where the weights are shards (`skeletons`: the networks without values, from before), so are the averages,
    and these copies cannot be called; `gather` gives some that can.
    """

    def __init__(self, networks: dict[str, nn.Module], rates: Sequence[float],
                 skeletons: dict[str, nn.Module] | None = None):
        self.skeletons = skeletons

        def copied(name: str, net: nn.Module) -> nn.Module:
            if skeletons is None:
                return copy.deepcopy(net).eval().requires_grad_(False)
            return fill_skeleton(skeletons[name], {key: p.detach().clone() for key, p in net.named_parameters()})

        self.networks = {rate: {name: copied(name, net) for name, net in networks.items()} for rate in rates}
        self._values: list[Tensor] = [p for net in networks.values() for p in net.parameters()]
        self._averages: dict[float, list[Tensor]] = {
            rate: [p for copy_ in copies.values() for p in copy_.parameters()] for rate, copies in self.networks.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after step number `step`, counted from 0."""
        for rate, averages in self._averages.items():
            torch._foreach_lerp_(averages, self._values, 1 - min(rate, (1 + step) / (10 + step)))

    @torch.no_grad()
    def gather(self, keep: bool) -> dict[float, dict[str, nn.Module]]:
        """The averages as networks to call. Of shards, all processes must ask; those that do not keep them get none."""
        if self.skeletons is None:
            return self.networks
        found: dict[float, dict[str, nn.Module]] = {}
        for rate, copies in self.networks.items():
            for name, net in copies.items():
                values = {key: full for key, p in net.named_parameters() for full in [gather_whole(p)] if keep}
                if keep:
                    found.setdefault(rate, {})[name] = fill_skeleton(self.skeletons[name], values)
        return found
