"""`train.microbatch: auto`: how many samples go through at a time, for the memory at hand."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection

import psutil
import torch

from pidistill.core.errors import PidistillError, words_of
from pidistill.core.precision import autocast
from pidistill.objectives.base import Batch, Objective, Part, Phase
from pidistill.training.batches import draw_batch
from pidistill.training.buffers import keep_buffers
from pidistill.training.config import RunConfig
from pidistill.training.footprint import ACTIVATIONS, Rehearsal, group_tensors, trained_parameters
from pidistill.training.unit import hold_constant

USABLE = 5 / 6  # of the free memory: a prediction may be a fifth too low


def find_microbatch(objective: Objective, config: RunConfig, share: int, device: torch.device, step: int) -> tuple[int, str]:
    """Find how many samples of a process's `share` of the batch go through at a time, and say why in words.

    The objective and its averages are on the device already, and what exchanges gradients; the optimisers' state may not be.
    step: the next one, whose samples are tried.

    A GPU tries it, from the whole share down. On the CPU, where memory that is not there is another program's, a step is
    predicted; of a teacher that computes outside of PyTorch nothing can be predicted, and all goes through at once.
    """
    free = free_memory(device)
    if device.type == "cuda":
        micro, why = halve_until_it_runs(objective, config, share, device, step), "tried"
    else:
        try:
            rehearse = Rehearsal(objective, config, gpu=False)
            micro, sizes = fit_microbatch(rehearse, share, USABLE * free, there=("EMA", *group_tensors(objective)))
            why = f"{sum(sizes.values()) / 2**30:.3g} GiB beside what is there"
        except Exception as error:  # whatever a stranger's network does with tensors that have no values
            micro, why = share, f"no prediction: {words_of(error)[:160]}"
    return micro, f"microbatches of {micro} of {share} ({why}, {free / 2**30:.3g} GiB free)"


def free_memory(device: torch.device) -> float:
    """Bytes that this process may take: of a machine's memory its part among the processes of a run there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def fit_microbatch(rehearse: Callable[[int, bool], dict[str, int]], share: int, room: float,
                   there: Collection[str] = ()) -> tuple[int, dict[str, int]]:
    """Find how many samples at a time let a step take at most `room` bytes, and what it then takes, by what it is for.

    rehearse: (samples at a time, whether there are several microbatches) -> bytes, by what they are for.
    share: samples of the step. They are split into as few equal microbatches as will do; 1 a time where nothing does.
    there: entries of the bytes that do not count.
    """
    count, micro = 1, share
    while True:
        sizes = {label: size for label, size in rehearse(micro, count > 1).items() if label not in there}
        total = sum(sizes.values())
        growing = sum(size for label, size in sizes.items() if label.startswith(ACTIVATIONS))
        if total <= room or micro == 1:
            return micro, sizes
        most = int(max(room - (total - growing), 0) / growing * micro) if growing else 1
        count = max(count + 1, -(-share // max(most, 1)))
        micro = -(-share // count)


def halve_until_it_runs(objective: Objective, config: RunConfig, micro: int, device: torch.device, step: int = 0) -> int:
    """Halve `micro` until forward and backward pass of so many samples run on the device, in every phase."""
    parts = [(number, phase, part) for number, phase in enumerate(objective.phases()) for part in phase.parts]
    for number, phase, part in parts:
        draw = functools.partial(draw_batch, part, number, config.train.seed, step, device=device)
        while not runs_through(objective, config, phase, part, step, draw(ks=range(micro))):
            if micro == 1:
                raise PidistillError("train.microbatch=auto: the memory does not hold a step of one sample; "
                                     "set train.recompute=true, or objective.distance.microbatch=1 (lpips, features)")
            micro = -(-micro // 2)
    return micro


def runs_through(objective: Objective, config: RunConfig, phase: Phase, part: Part, step: int, batch: Batch) -> bool:
    """Tell whether forward and backward pass of a batch of a phase's part end well in that step. Leaves no gradient.

    Beside it there is room for the optimiser's two moments of the weights.
    """
    device, parameters = next(iter(batch.values())).device, trained_parameters(objective, phase)
    try:
        beside = [torch.empty_like(p) for p in parameters for _ in range(2)]
        with hold_constant(objective, phase), keep_buffers(objective.networks.values()):
            with autocast(config.precision, device):
                loss = part.loss(batch, step).sum()
            loss.backward()
        del beside
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        for p in parameters:
            p.grad = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
