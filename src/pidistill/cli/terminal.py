"""The command line's words are parsed here, and results are printed. torch is imported by no line of this."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidistill.core.profiles import Average
    from pidistill.jobs.distillation import DistillationResult


def parse_rates(text: str | None) -> list[Average | None]:
    """Parse EMA rates and widths such as `0.999,width:0.12`, without repetition; no text gives [None], a run's first."""
    from pidistill.core.profiles import parse_average

    return [None] if text is None else list(dict.fromkeys(parse_average(part) for part in text.split(",")))


def parse_rate(text: str | None) -> Average | None:
    """Parse an EMA rate or a width; no text gives None, a run's first rate."""
    from pidistill.core.profiles import parse_average

    return None if text is None else parse_average(text)


def add_out(overrides: list[str] | None, out: Path | None) -> list[str | tuple[str, str]]:
    """Add what --out means, the value of `out`, to the overrides of a run; a pair, so that nobody reads it as YAML."""
    return [*(overrides or []), *([] if out is None else [("out", str(out))])]


def format_command_line() -> str:
    """Format the command that the user typed, to be recorded beside what it made."""
    return shlex.join(["pidistill", *sys.argv[1:]])


def show_traceback(error: BaseException) -> bool:
    """Print the whole traceback, causes and all, where PIDISTILL_TRACEBACK is set; tells whether it was."""
    if os.environ.get("PIDISTILL_TRACEBACK", "0") in ("", "0"):
        return False
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = False  # `from None` keeps an error short, not secret
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)
    return True


def print_teacher(folder: Path | None) -> None:
    """Print where a trained teacher lies; all processes but the main one, which have no folder, print nothing."""
    if folder:
        print(f"teacher in {folder}; distil it with: pidistill distill --teacher {shlex.quote(str(folder))}")


def print_distilled(result: DistillationResult | None) -> None:
    """Print the table at the end of a distillation; all processes but the main one, which have no result, print nothing."""
    if result is None:
        return
    from pidistill.evaluation.tables import tabulate

    print_rows(tabulate(result.evaluation))
    print(f"{result.seconds:.0f} s in all; student in {result.folder / 'student'}, picture "
          f"{result.folder / 'teacher-student.png'}, numbers {result.folder / 'results.json'}")


def print_rows(rows: list[list[str]]) -> None:
    """Print a table whose first row is the head."""
    from rich.console import Console
    from rich.table import Table

    head, *body = rows
    table = Table(*head)
    for row in body:
        table.add_row(*row)
    terminal = Console(markup=False, emoji=False)  # names may have [brackets] and :colons:
    # Elsewhere than on a terminal nothing is cut off.
    (terminal if terminal.is_terminal else Console(width=250, markup=False, emoji=False)).print(table)


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print a mapping, an entry a line, with `indent` before it; mappings inside it are indented further."""
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            print_facts(value, indent + "  ")
        else:
            print(f"{indent}{key:<{width}}  {format(value, ',') if type(value) is int else value}")
