"""Trained networks in shards, one on each process: PyTorch's FSDP2, as `accelerate launch --use_fsdp` asks for it.

accelerate has it on GPUs only and wants optimiser and model at once, so this calls PyTorch itself, on GPUs and CPUs alike.
Weights, moments and averages are DTensors, each split along its first dimension; gradients arrive so. Checkpoints hold whole
tensors, as without, and may be continued with or without shards.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pidistill.core.errors import PidistillError
from pidistill.nets.parts.unet import UNetBlock
from pidistill.training.buffers import adopt_buffers

M = TypeVar("M", bound=nn.Module)


def is_fsdp_launch() -> bool:
    """Tell whether this process was started by `accelerate launch --use_fsdp --fsdp_version 2`."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise PidistillError("of FSDP, version 2 alone works: accelerate launch --use_fsdp --fsdp_version 2")
    return True


class Gathered(nn.Module):
    """A network in shards, which are gathered while a function runs, and until its backward pass is done.

    Only what is called as a module may be a unit of FSDP's: the weights of others are not gathered. An objective may call
    its networks however it likes; it is this that is called.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return function(*arguments)


def shard(networks: Mapping[str, nn.Module], processes: int, device: torch.device) -> dict[str, Gathered]:
    """Replace the weights of networks by shards, gathered block by block where they are used; gives what gathers them.

    networks: by name, on their device.
    processes: the number of shards, one for each process of the run.
    device: of the weights.
    """
    scalars = [name for network in networks.values() for name, p in network.named_parameters() if p.ndim == 0]
    if scalars:
        raise PidistillError(f"FSDP2 has no shards of a single number, such as {scalars[0]}: train this network without "
                             "--use_fsdp")
    mesh = init_device_mesh(device.type, (processes,))
    gathered = {name: Gathered(network) for name, network in networks.items()}
    for network in gathered.values():
        for module in list(network.modules()):
            if isinstance(module, UNetBlock):
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)
    return gathered


class ShardedNetworks(dict[str, nn.Module]):
    """The networks of an objective in shards, by name; those that are asked for as constants come whole.

    `networks[name]` gathers a constant when it is first asked for in a phase, and the copy, whose buffers are the network's
    own, is gone with the phase. All processes must ask, in the same order. `items()` and `values()` give the networks in
    shards.

    skeletons: copies of the networks without values, by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module], skeletons: Mapping[str, nn.Module]):
        super().__init__(networks)
        self.skeletons = skeletons
        self.trained: Collection[str] = ()
        self.whole: dict[str, nn.Module] = {}

    def __getitem__(self, name: str) -> nn.Module:
        network = super().__getitem__(name)
        if name in self.trained:
            return network
        if name not in self.whole:
            values = {key: gather_whole(p) for key, p in network.named_parameters()}
            whole = fill_skeleton(self.skeletons[name], values, dict(network.named_buffers()))
            self.whole[name] = whole.train(network.training)
        return self.whole[name]

    @contextmanager
    def train_only(self, names: Collection[str]) -> Iterator[None]:
        """Give the networks of these names in shards meanwhile, to be trained, and others whole."""
        self.trained = names
        try:
            yield
        finally:
            self.trained = ()
            for name, whole in self.whole.items():
                adopt_buffers(dict.__getitem__(self, name), whole)  # those that it replaced; others were the network's own
            self.whole.clear()


@contextmanager
def accumulate_locally(models: Collection[Any]) -> Iterator[None]:
    """Keep gradients whole on each process meanwhile, where they are added up, and exchange none.

    models: what `shard` gave for the networks that are trained.
    """
    for model in models:
        model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        for model in models:
            model.set_requires_gradient_sync(True)


def copy_without_values(network: M) -> M:
    """Copy a network with its buffers and without its parameters' values; one in shards cannot be copied any more."""
    empty: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in network.parameters()}
    return copy.deepcopy(network, empty).eval()


def fill_skeleton(network: M, values: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None) -> M:
    """Copy a network without values, and give the copy these parameters and buffers themselves, by name.

    Without `buffers` it has those that the skeleton was made with.
    """
    given: dict[int, Any] = {id(p): nn.Parameter(values[name], False) for name, p in network.named_parameters()}
    given |= {id(b): buffers[name] for name, b in network.named_buffers() if buffers and name in buffers}
    return copy.deepcopy(network, given)


def gather_whole(tensor: Tensor) -> Tensor:
    """Gather the tensor of which this may be a shard. All processes must ask, in the same order."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def to_local(tensor: Tensor) -> Tensor:
    """Give this process's shard, or the tensor itself if it is whole."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def shard_like(tensor: Tensor, p: Tensor) -> Tensor:
    """Lay a whole tensor out as p is: give p's shard of it, or itself if p is whole. Nothing is exchanged."""
    if not isinstance(p, DTensor):
        return tensor
    return distribute_tensor(tensor.to(p.device, p.dtype), p.device_mesh, p.placements, src_data_rank=None)
