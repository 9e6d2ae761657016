"""Progress on the terminal: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console
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
