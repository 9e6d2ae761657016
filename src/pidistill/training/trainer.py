"""The training loop: any objective, any number of processes."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pidistill.core.console import console
from pidistill.core.errors import CannotWrite, PidistillError
from pidistill.core.precision import autocast
from pidistill.objectives.base import Objective
from pidistill.training.batches import Batches, draw_batch
from pidistill.training.checkpoint import collect
from pidistill.training.checkpoint_writer import Checkpoints, take_part
from pidistill.training.config import RunConfig
from pidistill.training.log import Log
from pidistill.training.progress import Progress
from pidistill.training.setup import PreparedRun, prepare
from pidistill.training.sharding import to_local
from pidistill.training.signals import Signals, end_for_signal
from pidistill.training.step import Step
from pidistill.training.votes import Votes, explain_lost_processes

Averages = dict[float, dict[str, nn.Module]]  # by rate, then by name


class Watcher(NamedTuple):
    """Looks at the averaged networks every so many steps, and at the end, on the main process; what it returns is logged.

    All processes have the same watchers: of shards, all have to gather what the main one looks at.

    every: steps between two looks.
    look: called with the averages, the step and the run's folder; gives numbers by name, or None.
    """

    every: int
    look: Callable[[Averages, int, Path], dict[str, float] | None]


@explain_lost_processes()
def train(objective: Objective, config: RunConfig, folder: Path,
          watchers: Sequence[Watcher] = ()) -> tuple[Averages, bool]:
    """Minimise the objective; returns its averaged networks by EMA rate, and whether this process is the main one.

    Writes metrics.jsonl, tensorboard/ and checkpoints/ into `folder`, and continues from the newest whole checkpoint there.
    Ends with a checkpoint and KeyboardInterrupt (SIGINT) or SystemExit (SIGTERM, SIGUSR1) after the step in which a signal
    comes, and with PidistillError after `train.skip_limit` steps in a row that are not finite.

    objective, config: what is trained, and how.
    folder: of the run; the caller holds its lock.
    watchers: what looks at the averages meanwhile.
    """
    run = prepare(objective, config, folder)
    plan, keep, main, start = config.train, config.checkpoint, run.accelerator.is_main_process, run.start
    samples, share = sum(map(len, run.microbatches)), plan.batch / run.accelerator.num_processes
    batches = Batches(objective, plan.seed, range(start, plan.steps), run.microbatches, run.device)
    log = Log(folder, start) if main else None
    means, votes, clock, saved_at = Means(run), Votes(), time.monotonic(), start
    with (closing(batches.queue), Signals() as signals, Progress(start, plan.steps, plan.batch, enabled=main) as progress,
          (Checkpoints(folder / "checkpoints", keep.keep, keep.keep_every, log.path)
           if log else nullcontext()) as checkpoints):
        for number in range(start, plan.steps):
            loss, norm = run.step(number, batches.take_step(), samples, share)
            means.add(loss, norm)

            done, last = number + 1, number + 1 == plan.steps
            if done % config.log.every == 0 or last:
                report(run, means.take(done), norm, log, progress, done)
            watch([watcher for watcher in watchers if done % watcher.every == 0 or last], run, log, done, folder)

            due = main and keep.minutes is not None and time.monotonic() - clock > 60 * keep.minutes
            stop, due, streak = votes(signals.caught, due, run.step.skipped.look()[1])
            diverged = streak >= plan.skip_limit
            due = due and done > saved_at + 1  # what is voted for again before the vote for it has come back
            if due or stop or diverged or last or done % keep.every == 0:
                clock, saved_at = time.monotonic(), done
                saved = save(run, checkpoints, objective, config, means, done, final=bool(last or stop or diverged))
                if diverged or not saved:
                    raise PidistillError(describe_divergence(objective, run, config, done, streak, saved))
            if stop and not last:
                if checkpoints:
                    checkpoints.close(tries=1)  # what sent the signal may not wait for long
                end_for_signal(stop, f"stopped by {signal.Signals(stop).name} after step {done} of {plan.steps}; continue "
                                     f"with: pidistill resume {folder}\n" if main else "")
    run.accelerator.wait_for_everyone()
    return run.step.ema.gather(main), main


class Means:
    """The mean loss over the finite steps since the last line of metrics.jsonl; the sums stay on the device.

    A checkpoint records the sums, so that a run that goes on writes the lines of a run that was never interrupted.
    """

    def __init__(self, run: PreparedRun):
        self.accelerator: Accelerator = run.accelerator
        self.sums = torch.tensor([run.record["loss"], run.record["good"]], device=run.device)
        self.logged: int = run.record["logged"]  # the step of the last line

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Add a step's loss; a step whose gradient's norm is not finite counts as none."""
        self.sums += torch.stack([loss, norm.isfinite()]).to(self.sums)

    def reduce(self) -> list[float]:
        """Give the sum of the losses and the number of finite steps, over all processes."""
        return self.accelerator.reduce(self.sums, "mean").tolist()

    def take(self, done: int) -> float:
        """Give the mean over all processes (NaN where no step was finite); the sums begin again after step `done`."""
        total, good = self.reduce()
        self.sums.zero_()
        self.logged = done
        return total / good if good else math.nan


def report(run: PreparedRun, mean: float, norm: Tensor, log: Log | None, progress: Progress, done: int) -> None:
    """Write a line of metrics. Beside checkpoints this is the only place of the loop where values come to the host.

    mean, norm: the mean loss since the last line, and the norm of the last gradient.
    log: None on all but the main process.
    done: steps in all.
    """
    if log:
        skipped = int(run.step.skipped.counts[2])
        values = {"loss": mean, "lr": run.step.optimizer.param_groups[0]["lr"], "grad_norm": norm.item(),
                  "images_per_s": progress.speed(done), **({"skipped": skipped} if skipped else {})}
        log.write(done, {key: value for key, value in values.items() if math.isfinite(value)})  # JSON has no NaN
    progress.update(done, mean)


def watch(watchers: Sequence[Watcher], run: PreparedRun, log: Log | None, done: int, folder: Path) -> None:
    """Let the watchers that are due look at the averages, and log what they return. A full disk does not end the run.

    log: None on all but the main process, which only help to gather the averages.
    done, folder: steps in all, and the run's folder, for the watchers.
    """
    averages = run.step.ema.gather(log is not None) if watchers else {}
    for watcher in watchers if log else []:
        assert log is not None
        try:
            log.write(done, watcher.look(averages, done, folder) or {})
        except CannotWrite as error:
            console.print(f"WARNING: {error}. The run goes on", style="bold red", soft_wrap=True)


def save(run: PreparedRun, checkpoints: Checkpoints | None, objective: Objective, config: RunConfig, means: Means, done: int,
         final: bool) -> bool:
    """Hand a checkpoint over to be written, on the main process; false, and nothing, if it is not finite throughout.

    checkpoints: the writer; None on all but the main process.
    objective, config, means: whose state is saved beside the run's.
    done: steps in all.
    final: the run changes nothing any more, so nothing is copied.
    """
    total, good = means.reduce()
    record: dict[str, Any] = {
        "logged": means.logged, "loss": total, "good": good, "skipped": int(run.step.skipped.counts[2]),
        "loss_scale": run.step.scaler.state_dict(), "config": config.model_dump(mode="json")}
    files = collect(objective, run.step.ema, run.step.optimizer)
    values = [to_local(value) for tensors in files.values() for value in tensors.values() if value.is_floating_point()]
    largest = torch._foreach_norm([value for value in values if value.numel()], math.inf)
    bad = (~torch.stack([norm.float() for norm in largest]).isfinite()).sum()
    if run.accelerator.reduce(bad).item():  # a wait for the device, at checkpoints alone
        return False
    if checkpoints:
        checkpoints.save(done, files, record, final)
    else:
        take_part(files)
    return True


def describe_divergence(objective: Objective, run: PreparedRun, config: RunConfig, done: int, streak: int,
                        saved: bool) -> str:
    """Describe in one line the steps that were not finite; the losses are those of the last one, taken again.

    The weights are still those before these steps.

    done: the last of these steps.
    streak: how many they are in a row.
    saved: whether the state before them is.
    """
    step: Step = run.step
    losses: list[tuple[float, bool]] = []  # of every sample: its t, and whether its loss is finite
    with torch.no_grad(), autocast(config.precision, step.device):
        for ks in run.microbatches:
            batch = draw_batch(objective, config.train.seed, done - 1, ks, step.device)
            losses += zip(objective.times(batch).tolist(), step.model(batch).isfinite().tolist())
    losses = gather_object(losses)
    bad = [t for t, finite in losses if not finite]
    ts = bad or [t for t, _ in losses]
    what = f"{len(bad)} of {len(losses)} samples have such a loss" if bad else "every sample's loss is finite"
    scale = f", loss scale {step.scaler.get_scale():g}" if step.scaler.is_enabled() else ""
    state = "The state before them is saved" if saved else "Weights or optimiser are not finite, so they are not saved"
    return (f"{streak} steps in a row, up to step {done}, had a loss or gradient that is not finite and were left out. At "
            f"step {done} {what} (t from {min(ts):.4g} to {max(ts):.4g}; learning rate "
            f"{step.optimizer.param_groups[0]['lr']:g}{scale}). {state}; go on from it, or with --step from an earlier "
            "checkpoint, by `pidistill resume RUN --set optimizer.lr=...` (or optimizer.clip=1.0, precision=fp32)")
