"""The log of a run: metrics.jsonl and TensorBoard get each line and event once, on a full disk too."""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from pidistill.core.console import console
from pidistill.files.folders import write_text
from pidistill.files.reading import parse_json, read_bytes
from pidistill.training.trackers import Trackers


class GrowingFile:
    """A file that grows by whole records. What does not fit on the disk waits in memory for the next record."""

    def __init__(self, path: Path):
        self.path, self.waiting = path, b""

    def add(self, record: bytes) -> None:
        """Append a record and all that waits; a full disk is a warning, once until there is room again."""
        before, self.waiting = self.waiting, self.waiting + record
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.seek(0, io.SEEK_END)
                try:
                    if file.write(self.waiting) < len(self.waiting):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(size)
                    raise
            self.waiting = b""
        except OSError as error:
            if not before:
                console.print(f"WARNING: cannot write {self.path}: {error.strerror}. The run goes on, and keeps in memory "
                              "what belongs there", style="bold red", soft_wrap=True)


class Log:
    """Writes a run's metrics.jsonl and TensorBoard events. Continuing drops the lines that will be written again.

    It is a context, whose end is that of the trackers.

    PyTorch's SummaryWriter has a thread that a full disk ends, and then waits for it for ever; events are few, so they are
    written here and now.

    folder: of the run.
    start: the step that the run continues at; TensorBoard is told to drop what it has after it.
    trackers: get every line too.
    """

    def __init__(self, folder: Path, start: int, trackers: Trackers | None = None):
        self.trackers = trackers
        records = [record for record in read_metrics(folder) if record["step"] <= start]
        self.path = folder / "metrics.jsonl"
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in records))
        before = records[-1].get("seconds", 0.0) if records else 0.0
        self.started = time.monotonic() - before  # a run that goes on counts from there
        self.lines = GrowingFile(self.path)
        board = folder / "tensorboard"
        board.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names, so a clock that was put back must not give an earlier one.
        stamps = [int(text) for path in board.glob("events.out.tfevents.*") if (text := path.name.split(".")[3]).isdigit()]
        stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
        self.events = GrowingFile(board / f"events.out.tfevents.{stamp:010d}.pidistill.{os.getpid()}")
        self.events.add(encode_event(Event(wall_time=time.time(), file_version="brain.Event:2")))
        if start:
            restart = SessionLog(status=SessionLog.START)
            self.events.add(encode_event(Event(wall_time=time.time(), step=start + 1, session_log=restart)))

    def __enter__(self) -> Log:
        if self.trackers:
            self.trackers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.trackers:
            self.trackers.__exit__(*error)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step, by name, as one line and one event; of none nothing is written."""
        if not values:
            return
        seconds = round(time.monotonic() - self.started, 3)
        self.lines.add((json.dumps({"step": step, **values, "seconds": seconds}) + "\n").encode())
        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self.events.add(encode_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))))
        if self.trackers:
            self.trackers.write(step, values)


def encode_event(event: Any) -> bytes:
    """Encode an event as it stands in TensorBoard's files: its length and its bytes, each with a checksum."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def name_by_phase(what: str, values: Mapping[str, float], phases: Collection[str]) -> dict[str, float]:
    """Name the values of phases as metrics.jsonl has them: `loss` of a single phase, `loss/PHASE` where a step has several.

    values: by phase. phases: all of a step.
    """
    return {what if len(phases) == 1 else f"{what}/{name}": value for name, value in values.items()}


def read_losses(record: Mapping[str, Any]) -> dict[str, float]:
    """Read the mean losses of a record of metrics.jsonl by their names there: `loss`, or `loss/PHASE` of several."""
    return {key: value for key, value in record.items() if key == "loss" or key.startswith("loss/")}


METRICS_LIMIT = 256 * 10**6  # bytes; a million records


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run's metrics.jsonl: the lines with a step. A half-written last line is left out.

    Others that are no record are left out too, which is said: a disk that was full, or an editor, has damaged them.
    """
    path = folder / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    bad: list[int] = []
    lines = read_bytes(path, METRICS_LIMIT).splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
        elif number < len(lines) and line.strip():
            bad.append(number)
    if bad:
        console.print(f"{path}: {len(bad)} of {len(lines)} lines are no records, and left out, first line {bad[0]}",
                      soft_wrap=True)
    return records
