"""Training checkpoints: weights, averages and optimiser state as safetensors, the rest as JSON, a manifest over all."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.files.manifest import verify, write_manifest
from pidistill.files.weights import load_weights, read_json, read_tensors, stage, sync, write_folder
from pidistill.objectives.base import Objective
from pidistill.training.ema import EMA
from pidistill.training.sharding import like, whole

RETRY = 60.0  # seconds until a checkpoint that could not be written is tried again

Files = dict[str, dict[str, Tensor]]  # tensors by name, by file


class Checkpoints:
    """Writes the checkpoints of a run in a thread of its own; a step waits for the copy to the host alone.

    keep: how many of the newest stay, two at least; every: beside them, the first in each so many steps. One that cannot be
    written (a full disk) is a warning; it is tried again until the next is there, and nothing older is deleted meanwhile.
    metrics: a file that has to be on the disk before.
    """

    def __init__(self, folder: Path, keep: int = 2, every: int | None = None, metrics: Path | None = None):
        self.folder, self.keep, self.every, self.metrics = folder, keep, every, metrics
        self.error: Exception | None = None
        self.buffers: dict[tuple[str, str], Tensor] = {}
        self.copied: torch.cuda.Event | None = None
        self.job: tuple[int, Files, dict[str, Any]] | None = None
        self.busy = False
        self.tries: int | None = None  # that are left, once the run has come to its end
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self.thread.start()

    def save(self, step: int, files: Files, record: dict[str, Any], final: bool = False) -> None:
        """Copy, and return; the rest goes on behind. Waits only if the checkpoint before is still being written.

        Tensors may be shards; the other processes must call `take_part` then. final: nothing changes them any more, so they
        are not copied.
        """
        with self.changed:
            self.changed.wait_for(lambda: not self.busy and (self.job is None or self.error is not None))
            self.error = None  # of an older one, which this one replaces
            self.job = step, {file: {name: whole(value) if final else self._copy(file, name, value)
                                     for name, value in tensors.items()}
                              for file, tensors in files.items()}, record | {"step": step}
            self.copied = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
            self.changed.notify_all()

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        """From a GPU into memory that is kept for the next checkpoint, and without waiting: its stream keeps the order."""
        value = whole(value)
        if not value.is_cuda:
            return value.clone()
        buffer = self.buffers.get((file, name))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = self.buffers[file, name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return buffer.copy_(value, non_blocking=True)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.job is not None or self.tries is not None)
                job = self.job
                if job is None:
                    return
                self.busy = True
            error = self._write(*job)
            with self.changed:
                self.busy, self.error = False, error
                if error is None:
                    self.job = None
                self.changed.notify_all()
                if error is not None:
                    ending = self.tries is not None
                    self.tries = self.tries - 1 if self.tries is not None else None
                    if self.tries == 0:
                        return
                    self.changed.wait_for(lambda: self.job is not job or ending != (self.tries is not None),  # noqa: B023
                                          RETRY)

    def _write(self, step: int, files: Files, record: dict[str, Any]) -> Exception | None:
        try:
            if self.copied is not None:
                self.copied.synchronize()
            if self.metrics:
                sync(self.metrics)  # its lines up to the step must not be lost if the checkpoint is not
            write_folder(self.folder / f"{step:06d}", files, {"state": record}, write_manifest)
            with suppress(OSError):  # what cannot be deleted is tried again after the next one
                prune(self.folder, self.keep, self.every)
        except Exception as error:  # whatever it is, the run must not end for it
            left = by_step(self.folder)
            console.print(f"WARNING: checkpoint {step} is not written: {error}. The run goes on and tries again; the newest "
                          f"on disk is {left[-1].name if left else 'none'}", style="bold red", soft_wrap=True)
            return error
        return None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(tries=10 if kind is None else 1)  # an error is not kept waiting for a full disk

    def close(self, tries: int = 10) -> Exception | None:
        """Wait until the last one is on disk; gives the error if it is not after so many tries, a minute apart."""
        with self.changed:
            self.tries = tries
            self.changed.notify_all()
        self.thread.join()
        return self.error


def take_part(files: Files) -> None:
    """What a process does while the main one saves: its shards are asked for."""
    for tensors in files.values():
        for value in tensors.values():
            whole(value)


def collect(objective: Objective, ema: EMA, optimizer: torch.optim.Optimizer) -> Files:
    """The tensors of a checkpoint, where they are."""
    files = {name: dict(net.state_dict()) for name, net in parts(objective, ema)}
    return files | {"optimizer": flatten_optimizer(optimizer)}


def parts(objective: Objective, ema: EMA) -> Iterable[tuple[str, torch.nn.Module]]:
    """The networks of a checkpoint and the names of their files."""
    yield from objective.networks.items()
    for rate, copies in ema.networks.items():
        for name, net in copies.items():
            yield f"{name}-ema-{rate}", net


def restore(folder: Path, objective: Objective, ema: EMA, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load one checkpoint; returns its record: `step`, and what else `save` was given."""
    for name, net in parts(objective, ema):
        path = folder / f"{name}.safetensors"
        if "-ema-" in name and not path.exists():
            raise PidistillError(f"{folder} holds no average at the rate {name.split('-ema-')[1]}: `ema` cannot change "
                                 "while a run goes on")
        own = net.state_dict()
        tensors = read_tensors(path)
        load_weights(net, {key: like(value, own[key]) if key in own else value for key, value in tensors.items()}, path)
    unflatten_optimizer(optimizer, read_tensors(folder / "optimizer.safetensors"), folder)
    return read_json(folder / "state.json")


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors `index.key`; learning rates are functions of the step and not saved."""
    return {f"{i}.{key}": value for i, state in optimizer.state_dict()["state"].items() for key, value in state.items()}


def unflatten_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], folder: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    known = [p for group in optimizer.param_groups for p in group["params"]]
    if any(index >= len(known) or state[index]["exp_avg"].shape != known[index].shape for index in state):
        raise PidistillError(f"{folder / 'optimizer.safetensors'} does not fit the networks that are trained")
    for index, values in state.items():
        values |= {key: like(value, known[index].detach()) for key, value in values.items() if key != "step"}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def by_step(checkpoints: Path) -> list[Path]:
    return sorted((path for path in checkpoints.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))


def newest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with those after it. Each file is read and compared.

    Raises PidistillError if there are checkpoints and none is whole.
    """
    found = by_step(checkpoints)
    wrong: list[str] = []
    for path in reversed(found):
        try:
            verify(path)
            return path, wrong
        except PidistillError as error:
            wrong.append(str(error))
    if found:
        raise PidistillError(f"none of the {len(found)} checkpoints in {checkpoints} is whole ({wrong[0]}); to begin again, "
                             "delete them")
    return None, []


def set_aside(checkpoints: Path, after: int, why: str) -> None:
    """Rename the checkpoints after a step to NUMBER.WHY: they neither count nor stand in the way, and can be looked at."""
    for path in by_step(checkpoints):
        if int(path.name) > after:
            target = path.with_name(f"{path.name}.{why}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)


def latest(checkpoints: Path) -> Path | None:
    """The newest checkpoint, unverified: to look at, not to go on from."""
    found = by_step(checkpoints)
    return found[-1] if found else None


def config_of(checkpoints: Path) -> dict[str, Any] | None:
    """The configuration that the newest checkpoint was trained with, of those whose record is whole."""
    for path in reversed(by_step(checkpoints)):
        try:
            verify(path, ["state.json"])
            return dict(read_json(path / "state.json")["config"])
        except (PidistillError, KeyError):
            continue
    return None


def prune(checkpoints: Path, keep: int, every: int | None = None) -> None:
    """Delete all but the newest `keep` and, with `every`, the first in each so many steps."""
    for path in checkpoints.glob(".*.gone"):  # that could not be deleted before
        shutil.rmtree(path, ignore_errors=True)
    found = by_step(checkpoints)
    before = 0
    for path in found[:-keep]:
        step = int(path.name)
        if not every or step // every == before // every:
            gone = path.with_name(f".{path.name}.gone")
            path.rename(gone)  # at once, or a crash would leave half a checkpoint under its name
            stage("pruned one renamed")
            shutil.rmtree(gone, ignore_errors=True)
            stage("pruned")
        before = step


def clean(run: Path) -> None:
    """Delete what a crash left half written or half deleted in a run's folder. Only for who holds its lock."""
    for path in (*run.glob("checkpoints/.*"), *run.glob(".*.[0-9]*"), *run.glob("samples/.*.[0-9]*"), *run.glob(".*.old")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
