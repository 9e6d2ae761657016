"""Messages and progress go to the terminal: a live bar there, and plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import track as rich_track


class Stderr:
    """A stream that writes to sys.stderr, whatever that is by now.

    Text that cannot be written (a log on a full disk) is dropped and ends nothing.
    """

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


def track(numbers: range, what: str) -> Iterable[int]:
    """Iterate over the numbers, with a bar named `what` on a terminal and silently elsewhere."""
    return rich_track(numbers, what, console=console, disable=not console.is_terminal)
