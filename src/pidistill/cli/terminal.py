"""What the command line's words mean, and how results look on it. torch is imported by no line of this."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, get_args

from pidistill.core.errors import PidistillError


def one_sampler(text: str, steps: int) -> Any:
    """`heun`, whose steps are then those of --steps, or `heun:18`."""
    from pidistill.models.samplers.base import parse_sampler

    found = parse_sampler(text if ":" in text else f"{text}:{steps}")
    if len(found) > 1:
        raise PidistillError(f"--sampler takes one number of steps, got {text!r}")
    return found[0]


def one_precision(text: str) -> Any:
    from pidistill.core.precision import Precision
    from pidistill.core.registry import choices

    if text not in get_args(Precision):
        raise choices("precision", text, list(get_args(Precision)))
    return text


def parse_rates(text: str) -> list[float | None]:
    """`0.999,0.9999` -> numbers, without repetition."""
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise PidistillError(f"--ema takes rates such as 0.999,0.9999, got {text!r}") from None


def with_out(override: list[str] | None, out: Path | None) -> list[str]:
    return [*(override or []), *([f"out={str(out)!r}"] if out else [])]


def command_line() -> str:
    return shlex.join(["pidistill", *sys.argv[1:]])


def spread(arguments: list[str], options: tuple[str, ...] = ("--students", "--samplers")) -> list[str]:
    """`--samplers euler:250 heun:18` -> `--samplers euler:250 --samplers heun:18`: the parser takes one value an option."""
    spread, option = [], None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in options else None
            spread.append(argument)
        elif option and spread[-1] != option:
            spread += [option, argument]
        else:
            spread.append(argument)
    return spread


def said(folder: Path | None) -> None:
    if folder:
        print(f"teacher in {folder}; distil it with: pidistill distill --teacher {folder}")


def finish(results: dict[str, Any] | None, folder: Path) -> None:
    """The table at the end of a distillation; nothing on all but the main process."""
    if results is None:
        return
    print_table(results)
    print(f"{results['seconds']:.0f} s in all; student in {folder / 'student'}, picture {folder / 'teacher-student.png'}, "
          f"numbers {folder / 'results.json'}")


def print_table(results: dict[str, Any]) -> None:
    from pidistill.evaluation.tables import table

    print_rows(table(results))


def print_rows(table: list[list[str]]) -> None:
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
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            print_facts(value, indent + "  ")
        else:
            print(f"{indent}{key:<{width}}  {format(value, ',') if type(value) is int else value}")
