"""`train.microbatch: auto`: how many samples go through at a time, for the memory at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import psutil
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.precision import autocast
from pidistill.objectives.base import Objective
from pidistill.training.config import RunConfig
from pidistill.training.footprint import GROWING_LABELS, MakeOptimizer, Rehearsal

USABLE = 5 / 6  # of the free memory: a prediction may be a fifth too low


def automatic(objective: Objective, config: RunConfig, share: int, make_optimizer: MakeOptimizer, device: torch.device,
              processes: int, batch: Callable[[int], dict[str, Tensor]]) -> tuple[int, str]:
    """Samples at a time of a process's `share` of the batch, and why in words.

    The objective and its averages are on the device already; the optimiser's state may not be. batch: so many samples. What
    a GPU cannot bear in spite of the prediction is halved. Where nothing can be predicted, as of a teacher that computes
    outside of PyTorch, it is tried on a GPU, and on the CPU all goes through at once.
    """
    free = free_memory(device)
    try:
        rehearse = Rehearsal(objective, config, make_optimizer, device.type == "cuda", processes)
        micro, found = fitting(rehearse, share, USABLE * free, there=("weights", "teacher", "distance", "EMA"))
        why = f"{sum(found.values()) / 2**30:.3g} GiB beside what is there"
    except Exception as error:  # whatever a stranger's network does with tensors that have no values
        micro, why = share, f"no prediction: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    if device.type == "cuda":
        micro = bearable(objective, config, micro, batch, processes)
    return micro, f"microbatches of {micro} of {share} ({why}, {free / 2**30:.3g} GiB free)"


def free_memory(device: torch.device) -> float:
    """Bytes that this process may take: of a machine's memory its part among the processes of a run there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def fitting(rehearse: Callable[[int, bool], dict[str, int]], share: int, room: float,
            there: Collection[str] = ()) -> tuple[int, dict[str, int]]:
    """How many samples at a time so that a step on `share` of them takes at most `room` bytes, and what it then takes.

    As few equal parts as will do; 1 where nothing does. there: parts of a footprint that do not count.
    """
    parts, micro = 1, share
    while True:
        found = {label: size for label, size in rehearse(micro, parts > 1).items() if label not in there}
        total, growing = sum(found.values()), sum(found.get(label, 0) for label in GROWING_LABELS)
        if total <= room or micro == 1:
            return micro, found
        most = int(max(room - (total - growing), 0) / growing * micro) if growing else 1
        parts = max(parts + 1, -(-share // max(most, 1)))
        micro = -(-share // parts)


def bearable(objective: Objective, config: RunConfig, micro: int, batch: Callable[[int], dict[str, Tensor]],
             processes: int = 1) -> int:
    """`micro`, halved until forward and backward pass of so many samples run."""
    while not survives(objective, config, batch, micro, copies=2 + (processes > 1)):
        if micro == 1:
            raise PidistillError("train.microbatch=auto: the memory does not hold a step of one sample; "
                                 "set train.recompute=true, or objective.distance.microbatch=1 (lpips, features)")
        micro = -(-micro // 2)
    return micro


def survives(objective: Objective, config: RunConfig, batch: Callable[[int], dict[str, Tensor]], micro: int,
             copies: int) -> bool:
    """Whether a forward and backward pass ends well with so many copies of the trained weights beside it.

    Those stand for an optimiser's two moments, and for gradients that are being exchanged. Leaves no gradient.
    """
    values = batch(micro)
    device = next(iter(values.values())).device
    try:
        beside = [torch.empty_like(p) for network in objective.networks.values() for p in network.parameters()
                  if p.requires_grad for _ in range(copies)]
        with autocast(config.precision, device):
            loss = objective(values).sum()
        loss.backward()
        del beside
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        objective.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
