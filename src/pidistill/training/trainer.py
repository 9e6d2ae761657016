"""The training loop: any objective, any number of processes. The only file that knows accelerate."""

from __future__ import annotations

import functools
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from pidistill.core.compiling import compiled
from pidistill.core.console import console
from pidistill.core.errors import CannotWrite, PidistillError
from pidistill.core.precision import autocast, has_instructions, set_float32_products
from pidistill.objectives.base import Objective
from pidistill.training.batches import Batches, draws, split
from pidistill.training.checkpoint import collect, newest, restore, set_aside
from pidistill.training.checkpoint_writer import Checkpoints, take_part
from pidistill.training.config import RunConfig
from pidistill.training.log import Log
from pidistill.training.microbatch import automatic
from pidistill.training.optimizer import make_optimizer
from pidistill.training.progress import Progress
from pidistill.training.recompute import recompute_blocks
from pidistill.training.setup import agreed
from pidistill.training.sharding import local, unsynced, wanted
from pidistill.training.signals import Signals, ended
from pidistill.training.skipped import Skipped
from pidistill.training.step import Step, place
from pidistill.training.votes import PATIENCE, Votes, lost_processes

Averages = dict[float, dict[str, nn.Module]]  # by rate, then by name


class Watcher(NamedTuple):
    """Looks at the averaged networks every so many steps, and at the end, on the main process; what it returns is logged.

    All processes have the same watchers: of shards, all have to gather what one looks at.
    """

    every: int
    look: Callable[[Averages, int, Path], dict[str, float] | None]


@lost_processes()
def train(objective: Objective, config: RunConfig, folder: Path,
          watchers: Sequence[Watcher] = ()) -> tuple[Averages, bool]:
    """Minimise the objective; returns its averaged networks by EMA rate, and whether this process is the main one.

    Writes metrics.jsonl, tensorboard/ and checkpoints/ into `folder`, and continues from the newest whole checkpoint there.
    Ends with a checkpoint and KeyboardInterrupt (SIGINT) or SystemExit (SIGTERM, SIGUSR1) after the step in which a signal
    comes, and with PidistillError after `train.skip_limit` steps in a row that are not finite.
    """
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                                               InitProcessGroupKwargs(timeout=PATIENCE)])
    set_float32_products(config.precision)
    plan, device, main = config.train, accelerator.device, accelerator.is_main_process
    if not accelerator.use_distributed and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # or each would train its own run
        raise PidistillError("several processes were started, and accelerate sees one: on CPUs set ACCELERATE_USE_CPU=true")
    shards = accelerator.num_processes if wanted() else 0
    if shards and plan.microbatch == "auto":
        raise PidistillError("train.microbatch=auto does not go with FSDP2; give the number")
    if plan.batch < accelerator.num_processes:
        raise PidistillError(f"train.batch must be at least the {accelerator.num_processes} processes, got {plan.batch}")
    if main and not has_instructions(config.precision, device):
        console.print(f"precision={config.precision}: this CPU has no instructions for it; fp32 is many times faster")
    # k counts over the global batch, so that it is the same whatever the number of processes, which need not divide it.
    ks = range(*(plan.batch * (accelerator.process_index + n) // accelerator.num_processes for n in (0, 1)))

    objective.train()
    for module in (objective, *objective.frozen):
        place(module, device, module is objective and shards > 0)
    one = Step(objective, config, device, shards)
    record = restored(accelerator, folder, objective, one)
    start, logged = record["step"], record["logged"]
    if plan.recompute:  # after the averages were copied: those stay as they are
        for network in objective.networks.values():
            recompute_blocks(network)
    rows, most = len(ks), -(-plan.batch // accelerator.num_processes)  # this process's, and what one has at most
    micro = most if plan.microbatch is None else min(most, plan.microbatch) if plan.microbatch != "auto" else agreed(
        accelerator, automatic(objective, config, most, make_optimizer, device, accelerator.num_processes,
                               lambda n: draws(objective, plan.seed, start, range(n), device)))
    if config.compile != "never" and (config.compile != "auto" or device.type == "cuda"):
        mode: dict[str, Any] = {} if config.compile in ("auto", "default") else {"mode": config.compile}
        objective.compile_parts(functools.partial(compiled, dynamic=False, **mode))  # shapes are those of every step
    one.model = objective if shards else accelerator.prepare(objective)
    one.no_sync = functools.partial(unsynced if shards else accelerator.no_sync, one.model)
    parts = split(ks, plan.batch, accelerator.num_processes, micro)
    batches = Batches(objective, plan.seed, range(start, plan.steps), parts, device)
    log = Log(folder, start) if main else None
    running = torch.tensor([record["loss"], record["good"]], device=device)  # since the last line
    votes, clock, saved_at = Votes(), time.monotonic(), start
    keep, where = config.checkpoint, folder / "checkpoints"
    with (closing(batches.drawn), Signals() as signals, Progress(start, plan.steps, plan.batch, enabled=main) as progress,
          Checkpoints(where, keep.keep, keep.keep_every, log.path) if log else nullcontext() as checkpoints):
        for step in range(start, plan.steps):
            loss, norm = one(step, batches.step(), rows, plan.batch / accelerator.num_processes)
            running += torch.stack([loss, norm.isfinite()]).to(running)

            done, last = step + 1, step + 1 == plan.steps
            if done % config.log.every == 0 or last:  # the only place where values come to the host
                total, good = accelerator.reduce(running, "mean").tolist()
                running.zero_()
                logged = done
                mean = total / good if good else math.nan
                if log:
                    skipped = int(one.skipped.counts[2])
                    values = {"loss": mean, "lr": one.optimizer.param_groups[0]["lr"], "grad_norm": norm.item(),
                              "images_per_s": progress.speed(done), **({"skipped": skipped} if skipped else {})}
                    log.write(done, {key: value for key, value in values.items() if math.isfinite(value)})  # JSON has no NaN
                progress.update(done, mean)
            looking = [watcher for watcher in watchers if done % watcher.every == 0 or last]
            averages = one.ema.whole(main) if looking else {}
            for watcher in looking:
                if log:
                    log.write(done, looked(watcher, averages, done, folder))

            due = main and keep.minutes is not None and time.monotonic() - clock > 60 * keep.minutes
            stop, due, row = votes(signals.caught, due, one.skipped.look()[1])
            diverged = row >= plan.skip_limit
            due = due and done > saved_at + 1  # what is voted for again before the vote for it has come back
            if due or stop or diverged or last or done % keep.every == 0:
                clock, saved_at = time.monotonic(), done
                total, good = accelerator.reduce(running, "mean").tolist()
                saved = save(accelerator, checkpoints, done, objective, one, final=bool(last or stop or diverged), record={
                    "logged": logged, "loss": total, "good": good, "skipped": int(one.skipped.counts[2]),
                    "loss_scale": one.scaler.state_dict(), "config": config.model_dump(mode="json")})
                if diverged or not saved:
                    raise PidistillError(divergence(objective, one, config, parts, done, row, saved))
            if stop and not last:
                if checkpoints:
                    checkpoints.close(tries=1)  # what sent the signal may not wait for long
                raise ended(stop, f"stopped by {signal.Signals(stop).name} after step {done} of {plan.steps}; continue "
                                  f"with: pidistill resume {folder}\n" if main else "")
    accelerator.wait_for_everyone()
    return one.ema.whole(main), main


def restored(accelerator: Accelerator, folder: Path, objective: Objective, one: Step) -> dict[str, Any]:
    """Load the newest whole checkpoint, the same on all processes; gives its record, or that of step 0."""
    chosen: list[Any] = [None, None]  # its path, and what is wrong
    if accelerator.is_main_process:
        checkpoints = folder / "checkpoints"
        try:
            found, wrong = newest(checkpoints)
            for each in wrong:
                console.print(f"WARNING: {each}; going on from {found.name if found else 'the start'}", style="bold red",
                              soft_wrap=True)
            if found:
                set_aside(checkpoints, int(found.name), "damaged")
            chosen = [found, None]
        except PidistillError as error:
            chosen = [None, str(error)]
    broadcast_object_list(chosen)
    if chosen[1]:
        raise PidistillError(chosen[1])
    empty = {"step": 0, "logged": 0, "loss": 0.0, "good": 0.0, "skipped": 0}
    if chosen[0] is None:
        return empty
    record = restore(chosen[0], objective, one.ema, one.optimizer)
    if record.get("loss_scale"):
        one.scaler.load_state_dict(record["loss_scale"])
    one.skipped = Skipped(one.device, record["skipped"])
    return empty | record


def save(accelerator: Accelerator, checkpoints: Checkpoints | None, done: int, objective: Objective, one: Step,
         record: dict[str, Any], final: bool = False) -> bool:
    """Hand a checkpoint over to be written, on the main process; false, and nothing, if it is not finite throughout."""
    files = collect(objective, one.ema, one.optimizer)
    values = [local(value) for tensors in files.values() for value in tensors.values() if value.is_floating_point()]
    largest = torch._foreach_norm([value for value in values if value.numel()], math.inf)
    bad = (~torch.stack([each.float() for each in largest]).isfinite()).sum()
    if accelerator.reduce(bad).item():  # a wait for the device, at checkpoints alone
        return False
    if checkpoints:
        checkpoints.save(done, files, record, final)
    else:
        take_part(files)
    return True


def looked(watcher: Watcher, averages: Averages, done: int, folder: Path) -> dict[str, float]:
    try:
        return watcher.look(averages, done, folder) or {}
    except CannotWrite as error:
        console.print(f"WARNING: {error}. The run goes on", style="bold red", soft_wrap=True)
        return {}


def divergence(objective: Objective, one: Step, config: RunConfig, parts: Sequence[range], done: int, row: int,
               saved: bool) -> str:
    """One line on steps that were not finite. The weights are those before them, so their losses are asked again."""
    asked: list[tuple[float, bool]] = []
    with torch.no_grad(), autocast(config.precision, one.device):
        for part in parts:
            batch = draws(objective, config.train.seed, done - 1, part, one.device)
            asked += zip(objective.times(batch).tolist(), one.model(batch).isfinite().tolist())
    asked = gather_object(asked)
    bad = [t for t, finite in asked if not finite]
    ts = bad or [t for t, _ in asked]
    what = f"{len(bad)} of {len(asked)} samples have such a loss" if bad else "every sample's loss is finite"
    scale = f", loss scale {one.scaler.get_scale():g}" if one.scaler.is_enabled() else ""
    state = "The state before them is saved" if saved else "Weights or optimiser are not finite, so they are not saved"
    return (f"{row} steps in a row, up to step {done}, had a loss or gradient that is not finite and were left out. At step "
            f"{done} {what} (t from {min(ts):.4g} to {max(ts):.4g}; learning rate {one.optimizer.param_groups[0]['lr']:g}"
            f"{scale}). {state}; go on from it, or with --step from an earlier checkpoint, by `pidistill resume RUN --set "
            "optimizer.lr=...` (or optimizer.clip=1.0, precision=fp32)")
