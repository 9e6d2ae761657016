"""Messages and progress go to the terminal: a live bar there, and plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.markup import escape
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


# Without markup and emoji: names of the user's may have [brackets] and :colons:.
console = Console(file=cast(IO[str], Stderr()), highlight=False, markup=False, emoji=False)


def track(numbers: range, what: str) -> Iterable[int]:
    """Iterate over the numbers, with a bar named `what` on a terminal and silently elsewhere."""
    return rich_track(numbers, escape(what), console=console, disable=not console.is_terminal)
