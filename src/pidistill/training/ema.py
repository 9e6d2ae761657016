"""Copies that move after their networks: averages of weights at several rates at once, and an objective's followers.

Both are a <- r a + (1 - r) w after every step. An average's rate r ramps up as min(rate, (1 + step) / (10 + step)), so that
the first steps do not weigh for ever; a profile's is (1 - 1/t)^(gamma + 1), see `core.profiles`. Buffers are copied, see
`buffers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pidistill.core.profiles import solve_gamma
from pidistill.core.tensors import copy_module
from pidistill.objectives.base import Objective
from pidistill.training.buffers import Mirror
from pidistill.training.sharding import ShardedNetworks, fill_skeleton, gather_whole


class EMA:
    """Averages of named networks. `networks[rate]` holds copies by name, in evaluation mode, without gradients.

    So does `profiles[width]`, whose averages' weights follow a power of time. Rate 0 gives the weights themselves; buffers
    are always the networks' own.

    Where the weights are shards, so are the averages, and these copies cannot be
    called; `gather` gives some that can.

    networks: the networks to average, by name.
    rates: averaging rates, 0 to 1.
    skeletons: copies of the networks without values, made before the weights became shards; None where they are whole.
    widths: relative widths of profiles.
    """

    def __init__(self, networks: dict[str, nn.Module], rates: Sequence[float],
                 skeletons: dict[str, nn.Module] | None = None, widths: Sequence[float] = ()):
        self.skeletons = skeletons
        self.networks, self.profiles = ({key: {name: copy_network(net, skeletons[name] if skeletons else None)
                                               for name, net in networks.items()} for key in keys}
                                        for keys in (rates, widths))
        self._values: list[Tensor] = [p for net in networks.values() for p in net.parameters()]
        self._averages, self._profiles = ({key: list[Tensor](p for net in copies.values() for p in net.parameters())
                                           for key, copies in kept.items()} for kept in (self.networks, self.profiles))
        self._gammas = {width: solve_gamma(width) for width in widths}
        self._mirrors = [Mirror(net, [copies[name] for kept in (self.networks, self.profiles) for copies in kept.values()])
                         for name, net in networks.items()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after step number `step`, counted from 0."""
        for rate, averages in self._averages.items():
            torch._foreach_lerp_(averages, self._values, 1 - min(rate, (1 + step) / (10 + step)))
        for width, averages in self._profiles.items():
            torch._foreach_lerp_(averages, self._values, 1 - (1 - 1 / (step + 1)) ** (self._gammas[width] + 1))
        for mirror in self._mirrors:
            mirror.update()

    @torch.no_grad()
    def gather(self, keep: bool) -> dict[float, dict[str, nn.Module]]:
        """Give the averages as networks to call, by rate and name. Of shards, all processes must ask together.

        keep: whether this process wants them; of shards the others get none.
        """
        if self.skeletons is None:
            return self.networks
        averages: dict[float, dict[str, nn.Module]] = {}
        for rate, copies in self.networks.items():
            for name, net in copies.items():
                values = {key: full for key, p in net.named_parameters() for full in [gather_whole(p)] if keep}
                if keep:
                    averages.setdefault(rate, {})[name] = fill_skeleton(self.skeletons[name], values, copy_buffers(net))
        return averages

    @torch.no_grad()
    def gather_profiles(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """Give the profiles' tensors by NAME-WIDTH, as `gather` gives networks; shards come to the host one by one."""
        files: dict[str, dict[str, Tensor]] = {}
        for width, copies in self.profiles.items():
            for name, net in copies.items():
                for key, value in net.state_dict().items():
                    whole = gather_whole(value)
                    if keep:
                        files.setdefault(f"{name}-{width}", {})[key] = whole if self.skeletons is None else whole.cpu()
        return files


class Followers:
    """Moves the copies of an objective after its networks: p <- r p + (1 - r) of, after every step, and their buffers along.

    Where r is 1 they stay, buffers too.

    objective: its copies become shards where its networks are.
    skeletons: as `EMA` takes them.
    """

    def __init__(self, objective: Objective, skeletons: dict[str, nn.Module] | None = None):
        networks = dict(objective.networks.items())
        if skeletons:
            of = {name: follower.of for name, follower in objective.followers.items()}
            objective.copies = ShardedNetworks({name: copy_network(networks[of[name]], skeletons[of[name]]) for name in of},
                                               {name: skeletons[of[name]] for name in of})
        self.pairs: list[tuple[Callable[[int], float], list[Tensor], list[Tensor], Mirror]] = [
            (follower.rate, [*copied.parameters()], [*networks[follower.of].parameters()],
             Mirror(networks[follower.of], [copied]))
            for follower, copied in zip(objective.followers.values(), objective.copies.values(), strict=True)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the copies after step number `step`, counted from 0."""
        for rate, copied, values, mirror in self.pairs:
            r = rate(step)
            torch._foreach_lerp_(copied, values, 1 - r)
            if r != 1:
                mirror.update()


def copy_network(network: nn.Module, skeleton: nn.Module | None) -> nn.Module:
    """Copy a network, for evaluation and without gradients; of one in shards (given its skeleton) the shards."""
    if skeleton is None:
        return copy_module(network).eval().requires_grad_(False)
    return fill_skeleton(skeleton, {key: p.detach().clone() for key, p in network.named_parameters()}, copy_buffers(network))


def copy_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Copy a network's buffers, by name."""
    return {name: value.detach().clone() for name, value in network.named_buffers()}
