"""The preparation of a run: what it builds, and its processes agree on, before its first step."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from pidistill.core.compiling import try_compile
from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.precision import has_instructions, set_float32_products
from pidistill.objectives.base import Objective
from pidistill.training.batches import draw_batch, split_samples
from pidistill.training.checkpoint import newest, restore, set_aside
from pidistill.training.config import RunConfig
from pidistill.training.microbatch import find_microbatch
from pidistill.training.optimizer import make_optimizer
from pidistill.training.recompute import recompute_blocks
from pidistill.training.sharding import accumulate_locally, is_fsdp_launch
from pidistill.training.skipped import SkippedSteps
from pidistill.training.step import Step, place
from pidistill.training.votes import PATIENCE

START = {"step": 0, "logged": 0, "loss": 0.0, "good": 0.0, "skipped": 0}  # what a checkpoint records, before the first step


@dataclass(frozen=True)
class PreparedRun:
    """A run that can take its next step.

    accelerator: what the processes of the run exchange tensors by. step: of the run, with its state restored.
    record: of the checkpoint that the run goes on from, or `START`.
    microbatches: this process's samples of a step, numbered over the global batch.
    """

    accelerator: Accelerator
    step: Step
    record: dict[str, Any]
    microbatches: list[range]

    @property
    def start(self) -> int:
        """The number of steps that were taken before."""
        return self.record["step"]

    @property
    def device(self) -> torch.device:
        """The device that the run computes on."""
        return self.step.device


def prepare(objective: Objective, config: RunConfig, folder: Path) -> PreparedRun:
    """Place the objective on its device, restore the newest whole checkpoint in `folder`, and find the microbatches.

    objective: in training mode from here on, with its frozen networks.
    config: of the run. Raises PidistillError if its processes or its device cannot have it.
    folder: of the run.
    """
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                                               InitProcessGroupKwargs(timeout=PATIENCE)])
    set_float32_products(config.precision)
    check_processes(accelerator, config)
    device, processes = accelerator.device, accelerator.num_processes
    shards = processes if is_fsdp_launch() else 0
    # k counts over the global batch, so that it is the same whatever the number of processes, which need not divide it.
    ks = range(*(config.train.batch * (accelerator.process_index + n) // processes for n in (0, 1)))

    objective.train()
    for module in (objective, *objective.frozen):
        place(module, device, module is objective and shards > 0)
    step = Step(objective, config, device, shards)
    record = restore_newest(accelerator, folder, objective, step)
    if config.train.recompute:  # after the averages were copied: those stay as they are
        for network in objective.networks.values():
            recompute_blocks(network)
    micro = choose_microbatch(accelerator, objective, config, record["step"])
    compile_objective(objective, config, device)
    step.model = objective if shards else accelerator.prepare(objective)
    step.no_sync = functools.partial(accumulate_locally if shards else accelerator.no_sync, step.model)
    return PreparedRun(accelerator, step, record, split_samples(ks, config.train.batch, processes, micro))


def check_processes(accelerator: Accelerator, config: RunConfig) -> None:
    """Refuse settings that the run's processes, or its device, cannot have; say which are slow."""
    if not accelerator.use_distributed and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # or each would train its own run
        raise PidistillError("several processes were started, and accelerate sees one: on CPUs set ACCELERATE_USE_CPU=true")
    if is_fsdp_launch() and config.train.microbatch == "auto":
        raise PidistillError("train.microbatch=auto does not go with FSDP2; give the number")
    if config.train.batch < accelerator.num_processes:
        raise PidistillError(f"train.batch must be at least the {accelerator.num_processes} processes, "
                             f"got {config.train.batch}")
    if accelerator.is_main_process and not has_instructions(config.precision, accelerator.device):
        console.print(f"precision={config.precision}: this CPU has no instructions for it; fp32 is many times faster")


def choose_microbatch(accelerator: Accelerator, objective: Objective, config: RunConfig, start: int) -> int:
    """Choose how many samples go through at a time: as set, all, or what the smallest memory of all processes holds.

    accelerator: by which the processes agree on the number.
    objective, config: of the run.
    start: the next step, whose samples are tried.
    """
    plan, processes = config.train, accelerator.num_processes
    most = -(-plan.batch // processes)  # samples that a process has at most
    if plan.microbatch != "auto":
        return most if plan.microbatch is None else min(most, plan.microbatch)
    largest, why = find_microbatch(objective, config, most, make_optimizer, accelerator.device, processes,
                           lambda n: draw_batch(objective, plan.seed, start, range(n), accelerator.device))
    micro = int(accelerator.gather(torch.tensor([largest], device=accelerator.device)).min())
    if accelerator.is_main_process:
        console.print(why if micro == largest else f"{why}; another process has room for {micro}")
    return micro


def compile_objective(objective: Objective, config: RunConfig, device: torch.device) -> None:
    """Let the objective's networks run compiled, as `compile` of the configuration says; `auto` compiles on GPUs."""
    if config.compile != "never" and (config.compile != "auto" or device.type == "cuda"):
        mode: dict[str, Any] = {} if config.compile in ("auto", "default") else {"mode": config.compile}
        objective.compile_networks(functools.partial(try_compile, dynamic=False, **mode))  # shapes are those of every step


def restore_newest(accelerator: Accelerator, folder: Path, objective: Objective, step: Step) -> dict[str, Any]:
    """Load the newest whole checkpoint, the same on all processes; gives its record, or that of step 0.

    Damaged checkpoints after it are warned of and set aside. Raises PidistillError if none of them is whole.

    accelerator: tells which process is the main one, which chooses.
    folder: of the run.
    objective, step: whose state is restored.
    """
    choice: list[Any] = [None, None]  # the checkpoint's path, and what is wrong
    if accelerator.is_main_process:
        checkpoints = folder / "checkpoints"
        try:
            path, damages = newest(checkpoints)
            for damage in damages:
                console.print(f"WARNING: {damage}; going on from {path.name if path else 'the start'}", style="bold red",
                              soft_wrap=True)
            if path:
                set_aside(checkpoints, int(path.name), "damaged")
            choice = [path, None]
        except PidistillError as error:
            choice = [None, str(error)]
    broadcast_object_list(choice)
    if choice[1]:
        raise PidistillError(choice[1])
    if choice[0] is None:
        return START
    record = restore(choice[0], objective, step.ema, step.optimizer)
    if record.get("loss_scale"):
        step.scaler.load_state_dict(record["loss_scale"])
    step.skipped = SkippedSteps(step.device, record["skipped"])
    return START | record
