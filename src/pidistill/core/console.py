"""Progress on the terminal: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress import track as rich_track


class Stderr:
    """sys.stderr, whatever that is by now; what cannot be written (a log on a full disk) is dropped and ends nothing."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


console = Console(file=cast(IO[str], Stderr()), highlight=False)


def track(rows: range, what: str) -> Iterable[int]:
    """The rows, with a bar on a terminal and silently elsewhere."""
    return rich_track(rows, what, console=console, disable=not console.is_terminal)


class Progress:
    """Loss, images/s and time left of a training run."""

    def __init__(self, start: int, total: int, batch: int, enabled: bool = True):
        self.start, self.total, self.batch = start, total, batch
        self.began, self.said = time.perf_counter(), start
        self.bar = None
        self.enabled = enabled
        if enabled and console.is_terminal:
            self.bar = Bar(TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                           TextColumn("loss {task.fields[loss]:.4g}  {task.fields[speed]:.0f} images/s"),
                           TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task("", total=total, completed=start, loss=float("nan"), speed=0.0)
            self.bar.start()

    def speed(self, done: int) -> float:
        """Images per second since the run (or its continuation) began."""
        return (done - self.start) * self.batch / (time.perf_counter() - self.began)

    def update(self, done: int, loss: float) -> None:
        if self.bar:
            self.bar.update(self.task, completed=done, loss=loss, speed=self.speed(done))
        elif self.enabled and (done - self.said >= self.total / 20 or done == self.total):
            self.said = done
            left = (self.total - done) * self.batch / self.speed(done)
            console.print(f"step {done}/{self.total}  loss {loss:.4g}  {self.speed(done):.0f} images/s  {left:.0f} s left",
                          soft_wrap=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was, also after an error or Ctrl-C."""
        if self.bar:
            self.bar.stop()
