"""Buffers that training changes, such as the statistics of batch normalisation: in copies, processes, steps left out.

An average of buffers is their newest value, a <- b after every step, as in torch.optim.swa_utils by default: a mean of
running means would lag twice, and a mean of counters is none. So it is for an objective's followers, but those that stay.

Which buffers change is not known beforehand, and PyTorch does not count every change: its kernel of batch normalisation
changes the statistics, and `buffer.data` anything, behind the version counter. Small ones are copied always, which costs
nothing; some elements of large ones are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

SMALL = 4096  # elements of a buffer that is copied without a look, and of a larger one that are looked at

Home = dict[str, Tensor | None]  # a module's buffers by name, where they are looked up anew: a module may replace them


class Mirror:
    """Keeps the buffers of a network's copies equal to the network's. What never changes is not copied.

    A large buffer on a CPU is copied once its object, its version or one of `SMALL` elements across it is another. On a GPU
    a copy is cheaper than the look.

    network: whose buffers are followed.
    copies: of the same modules, in the same order.
    """

    def __init__(self, network: nn.Module, copies: Sequence[nn.Module]):
        self.places: list[tuple[Home, str, list[Home]]] = [
            (module._buffers, name, [copied._buffers for copied in others if copied is not module])
            for module, *others in zip(network.modules(), *(copied.modules() for copied in copies), strict=True)
            for name in module._buffers]
        self.looks = [Look(home[name]) for home, name, _ in self.places]

    @torch.no_grad()
    def update(self) -> None:
        """Copy what has changed."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for (home, name, others), look in zip(self.places, self.looks, strict=True):
            value = home.get(name)
            if look.finds_change(value):
                for other in others:
                    assign(other, name, value, pairs)
        copy_tensors(pairs)


class Look:
    """Tells whether a buffer is another than when it was looked at last. value: the buffer as it is now."""

    def __init__(self, value: Tensor | None):
        self.value, self.version, self.elements = value, -1, value
        self.finds_change(value)

    def finds_change(self, value: Tensor | None) -> bool:
        """Look at the buffer; True too where it is so small, or so far away, that it is not worth a look."""
        if value is None or value.numel() <= SMALL or value.device.type != "cpu" or value.is_inference():
            self.value = value
            return True
        elements = value.take(torch.arange(0, value.numel(), value.numel() // SMALL))
        same = self.value is value and self.version == value._version and self.elements is not None \
            and torch.equal(elements, self.elements)
        self.value, self.version, self.elements = value, value._version, elements
        return not same


class TrainedBuffers:
    """The buffers of networks that training changes: a phase that is left out does not, and processes agree on them.

    Which they are is found out in the first step; the others cost nothing afterwards.

    networks: those of an objective, before their next step.
    """

    def __init__(self, networks: Iterable[nn.Module]):
        modules = {id(module): module for network in networks for module in network.modules()}
        self.places: list[tuple[Home, str]] = [(module._buffers, name) for module in modules.values()
                                               for name in module._buffers]
        self.kept: list[Home] = [{name: clone(home[name])} for home, name in self.places]  # after the last good phase
        self.changed: list[bool] | None = [False] * len(self.places)  # None once it is known

    @torch.no_grad()
    def settle(self, bad: Tensor) -> None:
        """Keep what a phase has done to the buffers, or take it back. bad: (), true where the phase is left out."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for k, (home, name) in enumerate(self.places):
            value, kept = home.get(name), self.kept[k][name]
            if self.changed is not None:
                if (value is None and kept is None) or (value is not None and kept is not None and torch.equal(value, kept)):
                    continue
                self.changed[k] = True
            assign(self.kept[k], name, value, pairs)
        if bad.device.type == "cpu":
            copy_tensors([(value, kept) for kept, value in pairs] if bad else pairs)
        else:
            for kept, value in pairs:
                value.copy_(torch.where(bad, kept, value))
            copy_tensors(pairs)

    @torch.no_grad()
    def agree(self) -> None:
        """End a step: give all processes the main one's buffers, and forget those that do not change."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self.changed is not None and self.places:
            device = next((value.device for home, name in self.places if (value := home.get(name)) is not None), None)
            flags = torch.tensor(self.changed, device=device, dtype=torch.int32)
            if several:
                dist.all_reduce(flags, dist.ReduceOp.MAX)
            chosen = [k for k, flag in enumerate(flags.tolist()) if flag]
            self.places, self.kept = [self.places[k] for k in chosen], [self.kept[k] for k in chosen]
        self.changed = None
        if several:
            values = [value for home, name in self.places if (value := home.get(name)) is not None]
            for group in group_by_type(values):
                flat = torch.cat([value.reshape(-1) for value in group])
                dist.broadcast(flat, 0)
                parts = flat.split([value.numel() for value in group])
                copy_tensors([(value, part.reshape(value.shape)) for value, part in zip(group, parts, strict=True)])
            for (home, name), kept in zip(self.places, self.kept, strict=True):
                kept[name] = clone(home.get(name))


@contextmanager
def keep_buffers(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Give networks their buffers back at the end, whatever is tried on them meanwhile."""
    kept = [(module, {name: (value, clone(value)) for name, value in module._buffers.items()})
            for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, buffers in kept:
            for name, (value, copied) in buffers.items():
                module._buffers[name] = value
                if value is not None and copied is not None and not torch.equal(value, copied):
                    with torch.no_grad():
                        value.copy_(copied)


def adopt_buffers(network: nn.Module, other: nn.Module) -> None:
    """Let a network have the buffers of another of its kind: those that are other objects there."""
    for module, source in zip(network.modules(), other.modules(), strict=True):
        module._buffers.update(source._buffers)


def clone(value: Tensor | None) -> Tensor | None:
    """Copy a buffer's values; a module may have none under a buffer's name."""
    return None if value is None else value.detach().clone()


def assign(home: Home, name: str, value: Tensor | None, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Note that a buffer is to be given a value (`copy_tensors`), or replace it by a copy where it cannot hold the value.

    home, name: where the buffer is. pairs: of buffers and their values, which grows.
    """
    old = home.get(name)
    facts = lambda tensor: (tensor.shape, tensor.dtype, tensor.device)
    if old is not None and value is not None and facts(old) == facts(value) and not old.is_inference() \
            and all(step or n == 1 for n, step in zip(old.shape, old.stride(), strict=True)):  # not one element for many
        pairs.append((old, value))
    else:
        home[name] = clone(value)


def group_by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group tensors by what a kernel takes at once: those of one type on one device."""
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return [*groups.values()]


def copy_tensors(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy into the first tensor of every pair the values of the second, of its shape and type."""
    values = {id(target): value for target, value in pairs}
    for targets in group_by_type(target for target, _ in pairs):
        torch._foreach_copy_(targets, [values[id(target)] for target in targets])
