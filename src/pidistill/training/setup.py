"""The preparation of a run: what it builds, and its processes agree on, before its first step."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import nn

from pidistill.core.compiling import try_compile
from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.precision import has_instructions, set_float32_products
from pidistill.core.processes import choose_device
from pidistill.objectives.base import Objective, check_contract
from pidistill.training.batches import split_phase
from pidistill.training.checkpoint import newest, restore, set_aside
from pidistill.training.config import RunConfig
from pidistill.training.microbatch import find_microbatch
from pidistill.training.recompute import recompute_networks
from pidistill.training.sharding import is_fsdp_launch
from pidistill.training.step import Step, place
from pidistill.training.trackers import check_trackers
from pidistill.training.votes import PATIENCE

START: dict[str, Any] = {"step": 0, "logged": 0, "phases": {}}  # what a checkpoint records, before the first step


@dataclass(frozen=True)
class PreparedRun:
    """A run that can take its next step.

    batch: samples of a step, of all processes.
    accelerator: what the processes of the run exchange tensors by. step: of the run, with its state restored.
    record: of the checkpoint that the run goes on from, or `START`.
    microbatches: this process's samples of a step, of every phase: part, and numbers in the global batch.
    """

    batch: int
    accelerator: Accelerator
    step: Step
    record: dict[str, Any]
    microbatches: list[list[tuple[int, range]]]

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

    objective: its networks are in training mode from here on.
    config: of the run. Raises PidistillError if its processes or its device cannot have it.
    folder: of the run.
    """
    check_contract(objective)
    check_trackers(config.log.trackers)
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                                               InitProcessGroupKwargs(timeout=PATIENCE)])
    set_float32_products(config.precision)
    check_processes(accelerator, config)
    device, processes = choose_device(str(accelerator.device)), accelerator.num_processes
    shards = processes if is_fsdp_launch() else 0
    place_objective(objective, device, shards > 0)
    step = Step(objective, config, device, wrap=accelerator.prepare, shards=shards)
    record = restore_newest(accelerator, folder, step)
    if config.train.recompute:
        recompute_networks(objective.networks.values())
    micro = choose_microbatch(accelerator, objective, config, record["step"])
    compile_objective(objective, config, device)
    # Samples are numbered over the global batch, so that they are the same whatever the number of processes.
    return PreparedRun(config.train.batch, accelerator, step, record, [
        split_phase(phase, config.train.batch, accelerator.process_index, processes, micro) for phase in objective.phases()])


def place_objective(objective: Objective, device: torch.device, shards: bool = False) -> None:
    """Move an objective to its device, its networks in training mode.

    shards: its networks become shards.
    """
    for network in objective.networks.values():
        place(network.train(), device, shards)
    for module in (*objective.copies.values(), *objective.calls.values()):
        if isinstance(module, nn.Module):
            place(module, device)


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
    largest, why = find_microbatch(objective, config, most, accelerator.device, start)
    micro = int(accelerator.gather(torch.tensor([largest], device=accelerator.device)).min())
    if accelerator.is_main_process:
        console.print(why if micro == largest else f"{why}; another process has room for {micro}")
    return micro


def compile_objective(objective: Objective, config: RunConfig, device: torch.device) -> None:
    """Let what a step spends its time on run compiled, as `compile` says; `auto` compiles on GPUs."""
    if config.compile == "never" or (config.compile == "auto" and device.type != "cuda"):
        return
    mode: dict[str, Any] = {} if config.compile in ("auto", "default") else {"mode": config.compile}
    compiler: Any = functools.partial(try_compile, dynamic=False, **mode)  # shapes are those of every step
    for name, network in (*objective.networks.items(), *objective.copies.items()):
        compiler(getattr(network, "net", network), what=f"the {name}'s network")
    for name, call in objective.calls.items():
        objective.calls[name] = compiler(functools.partial(call_module, call), what=f"the {name}")


def call_module(module: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module, as a function of its own to compile: previews and evaluations, with other shapes, call it as it is."""
    return module(*arguments)


def restore_newest(accelerator: Accelerator, folder: Path, step: Step) -> dict[str, Any]:
    """Load the newest whole checkpoint, the same on all processes; gives its record, or that of step 0.

    Damaged checkpoints after it are warned of and set aside. Raises PidistillError if none of them is whole.

    accelerator: tells which process is the main one, which chooses.
    folder: of the run.
    step: whose state is restored.
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
    return START | restore(choice[0], step)
