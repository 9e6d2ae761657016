"""The progress of a training run on the terminal: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pidistill.core.console import console


class Progress:
    """Shows loss, images/s and time left of a training run.

    start, total: steps done before, and in all.
    batch: images a step.
    enabled: false on all but the main process, where nothing is shown.
    """

    def __init__(self, start: int, total: int, batch: int, enabled: bool = True):
        self.start, self.total, self.batch = start, total, batch
        self.began, self.printed_at = time.perf_counter(), start
        self.bar = None
        self.enabled = enabled
        if enabled and console.is_terminal:
            self.bar = Bar(TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                           TextColumn("{task.fields[loss]}  {task.fields[speed]:.0f} images/s"),
                           TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task("", total=total, completed=start, loss="", speed=0.0)
            self.bar.start()

    def speed(self, done: int) -> float:
        """Give the images per second since the run (or its continuation) began. done: steps in all."""
        return (done - self.start) * self.batch / (time.perf_counter() - self.began)

    def update(self, done: int, losses: Mapping[str, float]) -> None:
        """Show the state after `done` steps: at once on a terminal, elsewhere a line every twentieth of the run.

        losses: by phase.
        """
        loss = "loss " + ", ".join(f"{value:.4g}" if len(losses) == 1 else f"{value:.4g} ({name})"
                                   for name, value in losses.items() if len(losses) == 1 or not math.isnan(value))
        if self.bar:
            self.bar.update(self.task, completed=done, loss=loss, speed=self.speed(done))
        elif self.enabled and (done - self.printed_at >= self.total / 20 or done == self.total):
            self.printed_at = done
            left = (self.total - done) * self.batch / self.speed(done)
            console.print(f"step {done}/{self.total}  {loss}  {self.speed(done):.0f} images/s  {left:.0f} s left",
                          soft_wrap=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was, also after an error or Ctrl-C."""
        if self.bar:
            self.bar.stop()
