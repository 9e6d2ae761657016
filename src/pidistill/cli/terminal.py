"""What the command line's words mean, and how results look on it. torch is imported by no line of this."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidistill.core.errors import PidistillError

if TYPE_CHECKING:
    from pidistill.jobs.distill import DistillationResult


def parse_rates(text: str | None) -> list[float | None]:
    """`0.999,0.9999` -> numbers, without repetition; no text stands for the first rate of a run."""
    if text is None:
        return [None]
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise PidistillError(f"--ema takes rates such as 0.999,0.9999, got {text!r}") from None


def with_out(override: list[str] | None, out: Path | None) -> list[str]:
    """The overrides of a run, with that of --out among them."""
    return [*(override or []), *([f"out={str(out)!r}"] if out else [])]


def command_line() -> str:
    """What the user typed, to be recorded beside what it made."""
    return shlex.join(["pidistill", *sys.argv[1:]])


def print_teacher(folder: Path | None) -> None:
    """Say where a trained teacher lies; nothing on all but the main process."""
    if folder:
        print(f"teacher in {folder}; distil it with: pidistill distill --teacher {folder}")


def print_distilled(done: DistillationResult | None) -> None:
    """Print the table at the end of a distillation; nothing on all but the main process."""
    if done is None:
        return
    from pidistill.evaluation.tables import tabulate

    print_rows(tabulate(done.evaluation))
    print(f"{done.seconds:.0f} s in all; student in {done.folder / 'student'}, picture "
          f"{done.folder / 'teacher-student.png'}, numbers {done.folder / 'results.json'}")


def print_rows(table: list[list[str]]) -> None:
    """Draw a table whose first row is the head."""
    from rich.console import Console
    from rich.table import Table

    head, *rows = table
    drawn = Table(*head)
    for row in rows:
        drawn.add_row(*row)
    terminal = Console()
    # Elsewhere than on a terminal nothing is cut off.
    (terminal if terminal.is_terminal else Console(width=250)).print(drawn)


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print a mapping, a line an entry; mappings in it are indented."""
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            print_facts(value, indent + "  ")
        else:
            print(f"{indent}{key:<{width}}  {format(value, ',') if type(value) is int else value}")
