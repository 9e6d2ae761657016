"""Trained networks in shards, one on each process: PyTorch's FSDP2, as `accelerate launch --use_fsdp` asks for it.

accelerate has it on GPUs only and wants optimiser and model at once, so this calls PyTorch itself, on GPUs and CPUs alike.
Weights, moments and averages are DTensors, each split along its first dimension; gradients arrive so. Checkpoints hold whole
tensors, as without, and may be continued with or without shards.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pidistill.core.errors import PidistillError
from pidistill.nets.parts.unet import UNetBlock

M = TypeVar("M", bound=nn.Module)


def is_fsdp_launch() -> bool:
    """Tell whether this process was started by `accelerate launch --use_fsdp --fsdp_version 2`."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise PidistillError("of FSDP, version 2 alone works: accelerate launch --use_fsdp --fsdp_version 2")
    return True


def shard(objective: nn.Module, processes: int, device: torch.device) -> None:
    """Replace the trained weights by shards, gathered block by block where they are used.

    Only what is called as a module may be a unit of its own: the weights of others are not gathered. All else belongs to
    the objective itself, which every step calls once, however it calls the student.

    objective: whose networks are trained, on its device.
    processes: the number of shards, one for each process of the run.
    device: of the weights.
    """
    scalars = [name for name, p in objective.named_parameters() if p.ndim == 0]
    if scalars:
        raise PidistillError(f"FSDP2 has no shards of a single number, such as {scalars[0]}: train this network without "
                             "--use_fsdp")
    mesh = init_device_mesh(device.type, (processes,))
    for module in list(objective.modules()):
        if isinstance(module, UNetBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(objective, mesh=mesh)


@contextmanager
def accumulate_locally(model: Any) -> Iterator[None]:
    """Keep gradients whole on each process meanwhile, where they are added up, and exchange none."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def copy_without_values(network: M) -> M:
    """Copy a network with its buffers and without its parameters' values. A network in shards cannot be copied any more."""
    empty: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in network.parameters()}
    return copy.deepcopy(network, empty).eval()


def fill_skeleton(network: M, values: dict[str, Tensor]) -> M:
    """Copy a network without values, and give the copy these parameters, by name."""
    parameters: dict[int, Any] = {id(p): nn.Parameter(values[name], False) for name, p in network.named_parameters()}
    return copy.deepcopy(network, parameters)


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
