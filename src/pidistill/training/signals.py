"""SIGTERM, SIGINT and SIGUSR1: what schedulers and users send. The step is finished and saved before the program ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import NoReturn

CAUGHT = [signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Signals:
    """While this is entered, a signal is kept in `caught` (0: none) and ends nothing; the second SIGINT ends the process.

    Python lets only its main thread do this: in others signals act as before.
    """

    def __init__(self) -> None:
        self.caught = 0
        self.handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in CAUGHT:
                if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGUSR1:  # nohup and & ignore for a reason
                    self.handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next is the kernel's, whatever Python is doing then
        name = signal.Signals(number).name
        hint = "; again to stop at once" if number == signal.SIGINT else ""
        cursor = SHOW_CURSOR if hint and sys.stderr.isatty() else b""
        if not self.caught:  # not print: it may be in the middle of one
            write_stderr(cursor + f"{name}: the step is finished and saved first{hint}\n".encode())
        self.caught = self.caught or number


def end_for_signal(number: int, text: str) -> NoReturn:
    """Raise what ends the program for a signal: for SIGINT KeyboardInterrupt(text), else SystemExit(128 + its number).

    Those are the exit codes of shells and schedulers. The text goes to stderr with the latter.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt(text)
    write_stderr(text.encode())
    raise SystemExit(128 + number)


def write_stderr(text: bytes) -> None:
    """Write to stderr past Python's buffers; what cannot be written is lost."""
    with suppress(OSError):
        os.write(2, text)
