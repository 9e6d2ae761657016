"""Snapshots of a run's profiles, into RUN/profiles/STEP: averages of any width are made of them, `models.snapshots`."""

from __future__ import annotations

import shutil
from pathlib import Path

from pidistill.core.console import console
from pidistill.core.errors import CannotWrite, PidistillError
from pidistill.files.folders import write_folder
from pidistill.files.manifest import write_manifest
from pidistill.models.snapshots import PROFILES
from pidistill.training.checkpoint import list_checkpoints
from pidistill.training.ema import EMA


class Snapshots:
    """Writes snapshots between two steps, before a checkpoint of the same step: a run that is killed misses none.

    ema: of the run.
    every: steps between two snapshots.
    run: the run's folder. start: the step that it goes on from; snapshots after it are of steps that are taken anew.
    main: whether this is the main process, which alone writes; of shards, all must call.
    """

    def __init__(self, ema: EMA, every: int, run: Path, start: int, main: bool):
        self.ema, self.every, self.folder, self.main = ema, every, run / PROFILES, main
        for path in list_checkpoints(self.folder) if main else []:
            if int(path.name) > start:
                try:
                    gone = path.rename(path.with_name(f".{path.name}.gone"))  # at once: a crash leaves no half of it
                except OSError as error:
                    raise CannotWrite(f"cannot delete {path}, of a step that is taken anew: {error.strerror}") from None
                shutil.rmtree(gone, ignore_errors=True)

    def __call__(self, done: int, last: bool) -> None:
        """Write the snapshot after so many steps, if it is due; what goes wrong is said, and the run goes on."""
        if not self.ema.profiles or not (last or done % self.every == 0):
            return
        files = self.ema.gather_profiles(self.main)
        try:
            if self.main:
                write_folder(self.folder / f"{done:06d}", files, {}, write_manifest)
        except PidistillError as error:
            console.print(f"WARNING: {error}. The run goes on without this snapshot of its profiles", style="bold red",
                          soft_wrap=True)
