"""SIGTERM, SIGINT and SIGUSR1: what schedulers and users send. The step is finished and saved before the program ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

CAUGHT = [signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Signals:
    """While entered, a signal is noted in `caught` (0: none) and ends nothing; the second SIGINT ends the process at once.

    Python lets only its main thread do this: in others signals act as before.
    """

    def __init__(self) -> None:
        self.caught = 0
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for each in CAUGHT:
                if signal.getsignal(each) != signal.SIG_IGN or each == signal.SIGUSR1:  # nohup and & ignore for a reason
                    self.before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next is the kernel's, whatever Python is doing then
        name = signal.Signals(number).name
        again = "; again to stop at once" if number == signal.SIGINT else ""
        show = SHOW_CURSOR if again and sys.stderr.isatty() else b""
        if not self.caught:  # not print: it may be in the middle of one
            say(show + f"{name}: the step is finished and saved first{again}\n".encode())
        self.caught = self.caught or number


def ending(number: int, text: str) -> BaseException:
    """The exception to raise for a signal: for SIGINT a KeyboardInterrupt, else an exit with 128 + its number, as shells and schedulers do."""
    if number == signal.SIGINT:
        return KeyboardInterrupt(text)
    say(text.encode())
    return SystemExit(128 + number)


def say(text: bytes) -> None:
    with suppress(OSError):
        os.write(2, text)
