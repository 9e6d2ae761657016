"""The training loop: any objective, any number of processes. It is a generator of the steps that it has taken."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from pidistill.core.console import console
from pidistill.core.errors import CannotWrite, PidistillError
from pidistill.core.precision import autocast
from pidistill.files.folders import quote_path
from pidistill.objectives.base import Objective
from pidistill.training.batches import Batches, draw_batch
from pidistill.training.checkpoint import collect
from pidistill.training.checkpoint_writer import Checkpoints, take_part
from pidistill.training.config import RunConfig
from pidistill.training.log import Log, name_by_phase
from pidistill.training.means import Means
from pidistill.training.progress import Progress
from pidistill.training.setup import PreparedRun, prepare
from pidistill.training.sharding import to_local
from pidistill.training.signals import Signals, end_for_signal
from pidistill.training.snapshots import Snapshots
from pidistill.training.step import Taken
from pidistill.training.trackers import Trackers
from pidistill.training.votes import Votes, explain_lost_processes

Averages = dict[float, dict[str, nn.Module]]  # by rate, then by name
V = TypeVar("V")


class Watcher(NamedTuple):
    """Looks at the averaged networks every so many steps, and at the end, on the main process; what it returns is logged.

    All processes have the same watchers: of shards, all have to gather what the main one looks at.

    every: steps between two looks.
    look: called with the averages, the step and the run's folder; gives numbers by name, or None.
    """

    every: int
    look: Callable[[Averages, int, Path], dict[str, float] | None]


class Trained(NamedTuple):
    """What a run has come to: its averaged networks by EMA rate, the steps taken, and whether this is the main process."""

    averages: Averages
    steps: int
    main: bool


class StepTaken:
    """A step that a run has just taken. A checkpoint that is due then is written after it was looked at.

    number: steps taken in all.
    last: whether the run ends with it.
    folder: of the run.
    main: whether this process is the main one.
    """

    def __init__(self, run: PreparedRun, number: int, last: bool, folder: Path, taken: dict[str, Taken], log: Log | None):
        self.number, self.last, self.folder, self.main = number, last, folder, log is not None
        self.stopped = False
        self._run, self._taken, self._log = run, taken, log

    @property
    def losses(self) -> dict[str, float]:
        """The mean loss of this process's samples, by phase, of those that the step took; waits for the device.

        It is 0 where the phase was left out, for a loss or a gradient that is not finite.
        """
        batch, accelerator = self._run.batch, self._run.accelerator
        mine = [batch / accelerator.num_processes / sum(len(ks) for _, ks in found) for found in self._run.microbatches]
        factors = dict(zip(self._run.step.phases, mine, strict=True))
        return {name: taken.loss.item() * factors[name] for name, taken in self._taken.items()}

    def averages(self) -> Averages:
        """Give the averaged networks, by EMA rate and name: they move on with the next step. Of shards, all processes must
        ask together, and the main one alone gets them."""
        return self._run.step.ema.gather(self.main)

    def average(self, name: str = "student", rate: float | None = None) -> Any:
        """Give one averaged network, by default that of the first rate, as `averages` does."""
        averages = self.averages()
        return averages[next(iter(averages)) if rate is None else rate][name] if averages else None

    def log(self, values: dict[str, float]) -> None:
        """Write numbers of this step, by name, into metrics.jsonl, TensorBoard and trackers, on the main process."""
        if self._log:
            self._log.write(self.number, values)

    def stop(self) -> None:
        """End the run after this step, as if it were the last. Of several processes one is enough: all end at the next."""
        self.stopped = True


def train(objective: Objective, config: RunConfig, folder: Path, watchers: Sequence[Watcher] = ()) -> Trained:
    """Minimise the objective to the end of the run. Parameters and errors: `take_steps`."""
    return exhaust(take_steps(objective, config, folder, watchers))


def exhaust(steps: Generator[Any, None, V]) -> V:
    """Run a generator to its end, and give what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def wait_for_all() -> None:
    """Wait until every process of the run is here."""
    with explain_lost_processes():
        PartialState().wait_for_everyone()


def take_steps(objective: Objective, config: RunConfig, folder: Path,
               watchers: Sequence[Watcher] = ()) -> Generator[StepTaken, None, Trained]:
    """Minimise the objective step by step; yields every step that it has taken.

    Writes metrics.jsonl, tensorboard/ and checkpoints/ into `folder`, and continues from the newest whole checkpoint there.
    Ends with a checkpoint and KeyboardInterrupt (SIGINT) or SystemExit (SIGTERM, SIGUSR1) after the step in which a signal
    comes, and with PidistillError after `train.skip_limit` steps in a row that are not finite. Who leaves off before the
    end can go on from the newest checkpoint.

    objective, config: what is trained, and how.
    folder: of the run; the caller holds its lock.
    watchers: what looks at the averages meanwhile.
    """
    with explain_lost_processes():
        return (yield from take_each_step(prepare(objective, config, folder), objective, config, folder, watchers))


def take_each_step(run: PreparedRun, objective: Objective, config: RunConfig, folder: Path,
                   watchers: Sequence[Watcher]) -> Generator[StepTaken, None, Trained]:
    """The loop. run: of the objective, prepared. Other parameters: `take_steps`."""
    plan, keep, main, start = config.train, config.checkpoint, run.accelerator.is_main_process, run.start
    share = plan.batch / run.accelerator.num_processes
    batches = Batches(objective.phases(), plan.seed, range(start, plan.steps), run.microbatches, run.device)
    log = Log(folder, start, Trackers(config, folder)) if main else None
    snapshots = Snapshots(run.step.ema, config.profiles.every, folder, start, main)
    done, means, votes, clock, saved_at = start, Means(run), Votes(), time.monotonic(), start
    with (closing(batches.queue), log or nullcontext(), Signals() as signals,
          Progress(start, plan.steps, plan.batch, enabled=main) as progress,
          (Checkpoints(folder / "checkpoints", keep.keep, keep.keep_every, log.path)
           if log else nullcontext()) as checkpoints):
        for number in range(start, plan.steps):
            taken = run.step(number, batches.take, share)
            means.add(taken)

            done, last = number + 1, number + 1 == plan.steps
            if done % config.log.every == 0 or last:
                report(run, means, log, progress, done)
            watch([watcher for watcher in watchers if done % watcher.every == 0 or last], run, log, done, folder)
            yield (step := StepTaken(run, done, last, folder, taken, log))

            due = main and keep.minutes is not None and time.monotonic() - clock > 60 * keep.minutes
            stop, due, ended, streak = votes(signals.caught, due, step.stopped, means.longest_streak())
            diverged = streak >= plan.skip_limit
            due = due and done > saved_at + 1  # what is voted for again before the vote for it has come back
            if ended and not last:
                last = True
                if done % config.log.every:
                    report(run, means, log, progress, done)
                watch([watcher for watcher in watchers if done % watcher.every], run, log, done, folder)
            snapshots(done, last)
            if due or stop or diverged or last or done % keep.every == 0:
                clock, saved_at = time.monotonic(), done
                saved = save(run, checkpoints, config, means, done, final=bool(last or stop or diverged))
                if diverged or not saved:
                    raise PidistillError(describe_divergence(objective, run, config, done, saved))
            if stop and not last:
                if checkpoints:
                    checkpoints.close(tries=1)  # what sent the signal may not wait for long
                end_for_signal(stop, f"stopped by {signal.Signals(stop).name} after step {done} of {plan.steps}; continue "
                                     f"with: pidistill resume {quote_path(folder)}\n" if main else "")
            if last:
                break
    run.accelerator.wait_for_everyone()
    return Trained(run.step.ema.gather(main), done, main)


def report(run: PreparedRun, means: Means, log: Log | None, progress: Progress, done: int) -> None:
    """Write a line of metrics. Beside checkpoints this is the only place of the loop where values come to the host.

    means: the mean losses since the last line, which begin again, and the norms of the last gradients.
    log: None on all but the main process.
    done: steps in all.
    """
    values = means.take(done)
    losses = {name: value for name, value in values.items() if name in means.sums}
    if log:
        phases = run.step.phases
        skipped = {name: int(phase.skipped.counts[2]) for name, phase in phases.items()}
        line = {**name_by_phase("loss", losses, means.sums),
                **name_by_phase("lr", {name: phase.rate(done - 1) for name, phase in phases.items()}, phases),
                **name_by_phase("grad_norm", {name: norm.item() for name, norm in means.norms.items()}, phases),
                "images_per_s": progress.speed(done),
                **name_by_phase("skipped", {name: count for name, count in skipped.items() if count}, phases),
                **{name: value for name, value in values.items() if name not in losses}}
        log.write(done, {key: value for key, value in line.items() if math.isfinite(value)})  # JSON has no NaN
    progress.update(done, losses)


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


def save(run: PreparedRun, checkpoints: Checkpoints | None, config: RunConfig, means: Means, done: int, final: bool) -> bool:
    """Hand a checkpoint over to be written, on the main process; false, and nothing, if it is not finite throughout.

    checkpoints: the writer; None on all but the main process.
    config, means: what is saved beside the run's state.
    done: steps in all.
    final: the run changes nothing any more, so nothing is copied.
    """
    record = means.record() | {"config": config.model_dump(mode="json")}
    files = collect(run.step)
    values = [to_local(value) for tensors in files.values() for key, value in tensors.items()
              if value.is_floating_point() and key not in run.step.unbounded]
    largest = torch._foreach_norm([value for value in values if value.numel()], math.inf)
    bad = (~torch.stack([norm.float() for norm in largest]).isfinite()).sum()
    if run.accelerator.reduce(bad).item():  # a wait for the device, at checkpoints alone
        return False
    if checkpoints:
        checkpoints.save(done, files, record, final)
    else:
        take_part(files)
    return True


def describe_divergence(objective: Objective, run: PreparedRun, config: RunConfig, done: int, saved: bool) -> str:
    """Describe in one line the steps that were not finite; the losses are those of the last one, taken again.

    The weights are still those before these steps.

    done: the last of these steps.
    saved: whether the state before them is.
    """
    number, step = max(enumerate(run.step.phases.values()), key=lambda item: int(item[1].skipped.counts[1]))
    phase, streak = step.phase, int(step.skipped.counts[1])
    last = phase.find_last(done - 1)
    losses: list[tuple[float, bool]] = []  # of every sample: its t (NaN if there is none), and whether its loss is finite
    with torch.no_grad(), autocast(config.precision, run.device), step.hold_others():
        for part, ks in run.microbatches[number]:
            batch = draw_batch(phase.parts[part], number, config.train.seed, last, ks, run.device)
            finite, t = step.unit(batch, last, part).isfinite().tolist(), objective.times(batch)
            losses += zip([math.nan] * len(finite) if t is None else t.tolist(), finite, strict=True)
    losses = gather_object(losses)
    bad = [t for t, finite in losses if not finite]
    ts = bad or [t for t, _ in losses]
    what = f"{len(bad)} of {len(losses)} samples have such a loss" if bad else "every sample's loss is finite"
    times = f"t from {min(ts):.4g} to {max(ts):.4g}; " if not math.isnan(ts[0]) else ""
    scale = f", loss scale {step.scaler.get_scale():g}" if step.scaler.is_enabled() else ""
    state = "The state before them is saved" if saved else "Weights or optimiser are not finite, so they are not saved"
    where = f" of the phase {phase.name}" if len(run.step.phases) > 1 else ""
    return (f"{streak} steps in a row{where}, up to step {done}, had a loss or gradient that is not finite and were left "
            f"out. At step {last + 1} {what} ({times}learning rate {step.rate(last):g}{scale}). {state}; go on from it, or "
            "with --step from an earlier checkpoint, by `pidistill resume RUN --set optimizer.lr=...` (or "
            "optimizer.clip=1.0, precision=fp32)")
