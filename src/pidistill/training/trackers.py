"""Trackers of experiments, such as W&B: those that accelerate has, by its names. None of them can stop or stall a run.

Each has a thread of its own, which starts it, hands numbers over and ends it: a service that cannot be reached keeps that
thread waiting and not the run. metrics.jsonl and TensorBoard are the run's own (`training/log.py`), and have everything
whatever becomes of a tracker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from pidistill.core.console import console
from pidistill.core.errors import PidistillError, name_error
from pidistill.core.registry import suggest_choices
from pidistill.files.folders import write_json
from pidistill.files.reading import read_json
from pidistill.training.config import RunConfig
from pidistill.training.config_file import flatten_settings

OWN = "tensorboard"  # which every run has
MOST_WAITING = 10_000  # lines of metrics that a tracker may be behind
GRACE = 30.0  # seconds that the end of a run waits for its trackers
REMEMBERED = "trackers.json"  # in the run's folder: by a tracker's name, the run there, which is gone on with

# What tells a tracker which of its runs to go on with, and how its run says which it is. Of the others, a run that goes on
# is a new one there.
Begin = Callable[[str, str, Path, str | None], dict[str, Any]]  # project, name, folder, the run there -> arguments
BEGIN: dict[str, Begin] = {
    "wandb": lambda project, name, folder, run: {"name": name, "dir": str(folder), "id": run, "resume": "allow"},
    "mlflow": lambda project, name, folder, run: {"run_name": name, "run_id": run},
    "trackio": lambda project, name, folder, run: {"name": run or name, "resume": "allow"},
}
IDENTIFY: dict[str, Callable[[Any], str]] = {"wandb": lambda run: run.id, "mlflow": lambda run: run.info.run_id,
                                             "trackio": lambda run: run.name}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate does not know, or whose package is not installed. Raises PidistillError."""
    known = sorted(name for name in LOGGER_TYPE_TO_CLASS if name != OWN)
    for name in names:
        if name == OWN:
            raise PidistillError("log.trackers: every run has TensorBoard's events, in its folder tensorboard/")
        if name not in known:
            raise suggest_choices("tracker of log.trackers", name, known)
        if find_spec(name) is None:
            raise PidistillError(f"log.trackers: {name} is not installed: pip install {name.replace('_', '-')}")


class Trackers:
    """The trackers of a run, on its main process. A context: its end waits for them, but not for long.

    config: of the run: which trackers, the project under which they keep it, and all that they are told of it.
    folder: of the run, which names it there.
    """

    def __init__(self, config: RunConfig, folder: Path):
        path = folder / REMEMBERED
        self.runs: dict[str, str] = read_json(path) if path.is_file() else {}
        self.lock, self.path = threading.Lock(), path
        run = folder.absolute()
        # A stage is named with the distillation that it belongs to.
        name = f"{run.parent.name}/{run.name}" if (run.parent / "config.yaml").is_file() else run.name
        settings = flatten_settings(config.model_dump(mode="json"))
        self.threads = [TrackerThread(tracker, config.log.project, name, folder, self.runs.get(tracker), settings,
                                      self.remember) for tracker in config.log.trackers]

    def remember(self, tracker: str, run: str) -> None:
        """Write down which run of a tracker's this is."""
        with self.lock:
            self.runs[tracker] = run
            write_json(self.path, self.runs)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the values of a step, by name."""
        for thread in self.threads:
            thread.add(step, values)

    def __enter__(self) -> Trackers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """End all: after what they wait for, or after `GRACE`; at once, nearly, where a signal ends the run."""
        stopped = kind is not None and not issubclass(kind, Exception)
        until = time.monotonic() + (GRACE / 6 if stopped else GRACE)
        for thread in self.threads:
            thread.end()
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                thread.warn("has not answered yet, and is left")


class TrackerThread(threading.Thread):
    """A thread that owns a tracker: all of its calls are made here, since some of them keep what they know by thread.

    tracker: accelerate's name of it.
    project, name, folder, run: for `BEGIN`.
    settings: of the run, which it is told when the run begins there.
    remember: is told the tracker's own name of the run.
    """

    def __init__(self, tracker: str, project: str, name: str, folder: Path, run: str | None, settings: Mapping[str, Any],
                 remember: Callable[[str, str], None]):
        super().__init__(name=f"tracker {tracker}", daemon=True)  # one that hangs does not keep the process alive
        self.tracker, self.project, self.settings, self.remember = tracker, project, settings, remember
        begin = BEGIN.get(tracker, lambda *_: {})(project, name, folder, run)
        self.arguments = {key: value for key, value in begin.items() if value is not None}
        if LOGGER_TYPE_TO_CLASS[tracker].requires_logging_directory:
            self.arguments["logging_dir"] = str(folder / tracker)
        self.goes_on = run is not None
        self.waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MOST_WAITING)
        self.failed = threading.Event()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Let a line wait for the tracker; of one that is far behind it is dropped."""
        if not self.failed.is_set():
            try:
                self.waiting.put_nowait((step, dict(values)))
            except queue.Full:
                self.failed.set()
                self.warn(f"is {MOST_WAITING} lines behind")

    def end(self) -> None:
        """Tell the tracker that no more comes."""
        try:
            self.waiting.put_nowait(None)
        except queue.Full:
            self.failed.set()

    def run(self) -> None:
        try:
            tracker = LOGGER_TYPE_TO_CLASS[self.tracker](self.project, **self.arguments)
            tracker.start()
            if self.tracker in IDENTIFY:
                self.remember(self.tracker, IDENTIFY[self.tracker](tracker.tracker))
            if not self.goes_on:  # MLflow refuses settings that are told again and have changed
                tracker.store_init_configuration(dict(self.settings))
            while line := self.waiting.get():
                if self.failed.is_set():
                    break
                tracker.log(line[1], step=line[0])
            tracker.finish()
        except BaseException as error:  # SystemExit too: nothing that a service's library raises is the run's end
            self.failed.set()
            self.warn(f"failed ({name_error(error)})")

    def warn(self, what: str) -> None:
        console.print(f"WARNING: the tracker {self.tracker} {what}. The run goes on, with metrics.jsonl and TensorBoard",
                      style="bold red", soft_wrap=True)
