"""A run's folder is made once, written by a single process at a time, and never overwritten unasked."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pidistill.core import processes
from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.files.folders import quote_path, write_json, write_text
from pidistill.files.reading import read_json
from pidistill.models.snapshots import PROFILES
from pidistill.training.checkpoint import clean, list_checkpoints, read_trained_config, set_aside
from pidistill.training.config import RunConfig
from pidistill.training.config_file import dump_yaml, find_differences, read_yaml

LOCK = ".lock"
LEASE = 120.0  # seconds; NFS takes the locks of a machine that vanished away after 90


@contextmanager
def claim(config: RunConfig, force: bool = False, resume: bool = False, given: Collection[str] = (),
          step: int | None = None) -> Iterator[Path]:
    """Hold the folder `config.out` for this run alone, with its config.yaml in it.

    A run that is there already is refused, unless `force` or `resume` says otherwise. Raises PidistillError for a folder
    that cannot be had, and for settings that are not those of the run there.

    config: of the run.
    force: a run that is there already is replaced.
    resume: it is continued, if its settings are these.
    given: keys whose settings may differ nevertheless; `optimizer` stands for all below it.
    step: the checkpoint to go on from, if not the newest; later ones are set aside.
    """
    folder = Path(config.out)
    if force and resume:
        raise PidistillError("--force begins a run again and --resume goes on with it: one of the two")
    if not processes.is_main():  # the main process alone makes the folder and holds the lock
        yield folder
        return
    with ExitStack() as stack:
        try:
            if folder.exists() and not folder.is_dir():
                raise PidistillError(f"{folder} is a file; choose another folder with --out")
            if not (folder / "config.yaml").exists() and any(list_entries(folder)):
                raise PidistillError(f"{folder} is not empty and holds no run; choose another folder with --out")
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(folder))
            begun = (folder / "config.yaml").exists()
            if begun and not force and not resume:
                raise PidistillError(f"{folder} holds another run; choose another folder with --out, continue it with "
                                     f"`pidistill resume {quote_path(folder)}` or --resume, or replace it with --force")
            if begun and force:
                for path in list_entries(folder):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif begun:
                go_back(folder / "checkpoints", step, config)
                refuse_changes(folder, config, given)
            clean(folder)
            write_text(folder / "config.yaml", dump_yaml(config))
        except OSError as error:
            raise PidistillError(f"cannot write the run's folder {folder}: {error.strerror or error}") from None
        yield folder


def list_entries(folder: Path) -> list[Path]:
    """List what is in a folder, if it is there, without locks and temporary files.

    config.yaml, which makes the folder a run, comes last.
    """
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    return sorted(paths, key=lambda path: path.name == "config.yaml")


def go_back(checkpoints: Path, step: int | None, config: RunConfig) -> None:
    """Set aside the checkpoints after a step; refuse a run that is further than it shall go.

    checkpoints: their folder in the run's.
    step: to go back to; None: nothing is set aside.
    config: whose `train.steps` the run shall not be beyond.
    """
    steps = [int(path.name) for path in list_checkpoints(checkpoints)]
    if step is not None and step not in steps:
        raise PidistillError(f"{checkpoints} has no checkpoint {step}; there are {', '.join(map(str, steps)) or 'none'}")
    reached = max(steps, default=0) if step is None else step
    if reached > config.train.steps:
        raise PidistillError(f"{checkpoints.parent} is at step {reached} already, beyond train.steps={config.train.steps}; "
                             "go on from an earlier checkpoint with --step")
    if step is not None:
        set_aside(checkpoints, step, "later")
        set_aside(checkpoints.with_name(PROFILES), step, "later")


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The kernel lets go of it when the process ends, however it ends, so none is ever stale.

    On file systems without such locks filelock leaves a marker with process and host, and sees whether that one lives.
    """
    lock, owner = FileLock(folder / LOCK), folder / f"{LOCK}.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder, host = "another process", socket.gethostname()
        with suppress(PidistillError, KeyError):
            record = read_json(owner)
            holder, host = f"process {record['process']} on {record['host']}, since {record['since']}", record["host"]
        try:
            if host != socket.gethostname():  # a file server needs its time to see that another machine is gone
                console.print(f"{folder} is being written by {holder}; waiting for {LEASE:.0f} s", soft_wrap=True)
            lock.acquire(timeout=0 if host == socket.gethostname() else LEASE)
        except Timeout:
            raise PidistillError(f"{folder} is being written by {holder}; wait for it, stop it, or choose another folder "
                                 f"with --out (if it is gone, delete {folder / LOCK})") from None
    try:
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")})
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        lock.release()


def refuse_changes(folder: Path, config: RunConfig, given: Collection[str]) -> None:
    """Refuse other settings than those that the newest checkpoint was trained with, or else of the folder's config.yaml.

    folder, config: of the run, and its settings now.
    given: keys that may differ; the find_differences ones are printed.
    """
    old = read_trained_config(folder / "checkpoints") or read_yaml(folder / "config.yaml")
    changed = find_differences(old, config)
    free = [key for key in changed if any(key == name or key.startswith(f"{name}.") for name in given)]
    if free != changed:
        raise describe_changes(folder, [key for key in changed if key not in free])
    if changed:
        console.print(f"{folder} goes on with other settings: {', '.join(changed)}", soft_wrap=True)


def describe_changes(folder: Path, keys: list[str]) -> PidistillError:
    """Give the error that refuses other settings of these keys in a run's folder."""
    return PidistillError(f"{folder} was made with other settings ({', '.join(keys)}); to go on with the new ones say so "
                          "with --set, or choose another folder with --out")


def check_run(folder: Path) -> None:
    """Raise PidistillError for a folder that holds no run."""
    if not (folder / "config.yaml").exists():
        raise PidistillError(f"{folder} holds no run: config.yaml was expected there")


def trains_teacher(folder: Path) -> bool:
    """Tell whether the run in a folder trains a teacher (and no student)."""
    check_run(folder)
    return "teacher" not in read_yaml(folder / "config.yaml")
