"""Checkpoints written behind the run, in a thread of their own: whole or not at all."""

from __future__ import annotations

import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.core.console import console
from pidistill.files.folders import stage, sync, write_folder
from pidistill.files.manifest import write_manifest
from pidistill.training.checkpoint import Files, list_checkpoints
from pidistill.training.sharding import gather_whole

RETRY = 60.0  # seconds until a checkpoint that could not be written is tried again


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
            self.job = step, {file: {name: gather_whole(value) if final else self._copy(file, name, value)
                                     for name, value in tensors.items()}
                              for file, tensors in files.items()}, record | {"step": step}
            self.copied = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
            self.changed.notify_all()

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        """From a GPU into memory that is kept for the next checkpoint, and without waiting: its stream keeps the order."""
        value = gather_whole(value)
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
            left = list_checkpoints(self.folder)
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
            stage("pruned one renamed")
            shutil.rmtree(gone, ignore_errors=True)
            stage("pruned")
        before = step
