"""Checkpoints written behind the run, in a thread of their own: whole or not at all."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pidistill.core.console import console
from pidistill.core.errors import CannotWrite, PidistillError, words_of
from pidistill.core.tensors import locate
from pidistill.files.folders import mark_stage, sync, write_folder
from pidistill.files.manifest import write_manifest
from pidistill.training.checkpoint import Files, list_checkpoints
from pidistill.training.sharding import gather_whole

RETRY = 60.0  # seconds until a checkpoint that could not be written is tried again


class Checkpoints:
    """Writes the checkpoints of a run in a thread of its own; a step waits for the copy to the host alone.

    folder: in which checkpoint number N is N as six digits.
    keep: how many of the newest stay, two at least.
    every: beside them, the first in each so many steps.
    metrics: a file that has to be on the disk before a checkpoint is.

    A checkpoint that cannot be written is a warning, and nothing older is deleted meanwhile. What waiting can mend (a full
    disk) is tried again until the next is there; what it cannot (tensors that no file can hold) is not.
    """

    def __init__(self, folder: Path, keep: int = 2, every: int | None = None, metrics: Path | None = None):
        self.folder, self.keep, self.every, self.metrics = folder, keep, every, metrics
        self.buffers: dict[tuple[str, str], Tensor] = {}
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self.future: Future[Exception | None] | None = None  # of the last checkpoint: the error, if it was given up
        self.resting = threading.Event()   # no write is under way
        self.changed = threading.Event()   # something that a checkpoint that waits to be tried again must know
        self.replaced = False              # that there is a newer one
        self.tries: int | None = None      # how many are left, once the run has come to its end

    def save(self, step: int, files: Files, record: dict[str, Any], final: bool = False) -> None:
        """Copy, and return; the rest goes on behind. Waits only if the checkpoint before is still being written.

        files: tensors by name, by file; they may be shards, and then the other processes must call `take_part`.
        record: what else belongs to the checkpoint, for state.json.
        final: nothing changes the tensors any more, so they are not copied.
        """
        if self.future:
            self.resting.wait()
            self.replaced = True
            self.changed.set()
            self.future.result()
        copied = {file: self._copy_file(file, tensors, final) for file, tensors in files.items()}
        arrived = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
        self.replaced = False
        self.resting.clear()
        self.future = self.pool.submit(self._write_at_last, step, copied, record | {"step": step}, arrived)

    def _copy_file(self, file: str, tensors: dict[str, Tensor], final: bool) -> dict[str, Tensor]:
        """Copy the tensors of a file, or with `final` give them as they are; what has several names is copied once."""
        copies: dict[str, Tensor] = {}
        names: dict[object, str] = {}  # by place in memory
        for name, value in tensors.items():
            place = None if isinstance(value, DTensor) else locate(value)  # a shard may be empty on some processes alone
            first = names.setdefault(place, name) if place else name
            if first != name:
                copies[name] = copies[first]
            else:
                copies[name] = gather_whole(value) if final else self._copy(file, name, value)
        return copies

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        """From CUDA into memory that is kept for the next checkpoint, and without waiting: its stream keeps the order."""
        value = gather_whole(value)
        if not value.is_cuda:
            return value.to("cpu", copy=True)
        buffer = self.buffers.get((file, name))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = self.buffers[file, name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return buffer.copy_(value, non_blocking=True)

    def _write_at_last(self, step: int, files: Files, record: dict[str, Any], arrived: Any) -> Exception | None:
        """Write until it works, a newer checkpoint replaces this one, or the tries at the run's end are used up."""
        while True:
            self.resting.clear()
            error = self._write(step, files, record, arrived)
            self.changed.clear()
            self.resting.set()
            if error is None or self.replaced or not can_mend_itself(error):
                return error
            if self.tries is not None:
                self.tries -= 1
                if self.tries <= 0:
                    return error
            self.changed.wait(RETRY)
            if self.replaced:
                return error

    def _write(self, step: int, files: Files, record: dict[str, Any], arrived: Any) -> Exception | None:
        """Write one checkpoint and delete those that are too old; whatever goes wrong is said and handed back."""
        try:
            if arrived is not None:
                arrived.synchronize()
            if self.metrics:
                sync(self.metrics)  # its lines up to the step must not be lost if the checkpoint is not
            write_folder(self.folder / f"{step:06d}", files, {"state": record}, write_manifest)
            with suppress(OSError):  # what cannot be deleted is tried again after the next one
                prune(self.folder, self.keep, self.every)
        except Exception as error:  # whatever it is, the run must not end for it
            left = list_checkpoints(self.folder)
            then = f"The run goes on{' and tries again' if can_mend_itself(error) else '; waiting cannot mend that'}"
            what = error if isinstance(error, PidistillError) else f"{type(error).__name__}: {words_of(error)}"
            console.print(f"WARNING: checkpoint {step} is not written: {what}. {then}; the newest on disk is "
                          f"{left[-1].name if left else 'none'}", style="bold red", soft_wrap=True, markup=False)
            return error
        return None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(tries=10 if kind is None else 1)  # an error is not kept waiting for a full disk

    def close(self, tries: int = 10) -> Exception | None:
        """Wait until the last one is on disk; gives the error if it is not after so many tries, a minute apart."""
        self.tries = tries
        self.changed.set()
        self.pool.shutdown()
        return self.future.result() if self.future else None


def can_mend_itself(error: Exception) -> bool:
    """Tell whether a write that failed may succeed later: where the disk or the memory was full, not the content wrong."""
    return isinstance(error, OSError | CannotWrite | MemoryError | torch.OutOfMemoryError) or "allocate" in str(error)


def take_part(files: Files) -> None:
    """What a process does while the main one saves: its shards are asked for."""
    for tensors in files.values():
        for value in tensors.values():
            gather_whole(value)


def prune(checkpoints: Path, keep: int, every: int | None = None) -> None:
    """Delete all but the newest `keep` and, with `every`, the first in each so many steps."""
    for path in checkpoints.glob(".*.gone"):  # that could not be deleted before
        shutil.rmtree(path, ignore_errors=True)
    found = list_checkpoints(checkpoints)
    before = 0
    for path in found[:-keep]:
        step = int(path.name)
        if not every or step // every == before // every:
            gone = path.with_name(f".{path.name}.gone")
            path.rename(gone)  # at once, or a crash would leave half a checkpoint under its name
            mark_stage("pruned one renamed")
            shutil.rmtree(gone, ignore_errors=True)
            mark_stage("pruned")
        before = step
