"""Words of the command line become values, and results become lines."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pidistill.cli.terminal import (
    add_out,
    format_command_line,
    parse_rate,
    parse_rates,
    print_distilled,
    print_facts,
    print_rows,
    print_teacher,
)
from pidistill.core.errors import PidistillError
from pidistill.core.profiles import Width
from tests.names import NAMES


def test_rates_are_numbers_without_repetition():
    assert parse_rates("0.999,0.9999, 0.999") == [0.999, 0.9999] and parse_rates(None) == [None]
    assert parse_rates("0.999,width:0.05,width:0.12@300") == [0.999, Width(0.05), Width(0.12, 300)]
    assert parse_rate("width:0.05") == Width(0.05) and parse_rate("0") == 0 and parse_rate(None) is None
    for text in ("", "0.9,", "high"):
        with pytest.raises(PidistillError, match=r"--ema takes rates such as 0\.999,0\.9999, got"):
            parse_rates(text)


@pytest.mark.parametrize("name", NAMES)
def test_out_is_the_value_that_was_typed(name):
    assert add_out(None, None) == [] and add_out(["ema=0.9"], None) == ["ema=0.9"]
    assert add_out(["ema=0.9"], Path(name)) == ["ema=0.9", ("out", name)]


def test_the_command_line_can_be_pasted_into_a_shell(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/pidistill", "distill", "--set", "train={steps: 5}", "--out", "a b"])
    assert format_command_line() == "pidistill distill --set 'train={steps: 5}' --out 'a b'"


def test_facts_are_aligned_and_indented(capsys):
    print_facts({"a": 12345, "long": 0.5, "network": {"class": "SongUNet", "n": True}, "none": None})
    assert capsys.readouterr().out.splitlines() == [
        "a        12,345", "long     0.5", "network:", "  class  SongUNet", "  n      True", "none     None"]
    print_facts({})
    assert capsys.readouterr().out == ""


def test_tables_are_not_cut_off_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    print_rows([["model", "FD"], ["x" * 100, "1.25"], ["y", "30"]])
    out = capsys.readouterr().out
    assert "x" * 100 in out and [line.count("│") for line in out.splitlines() if "1.25" in line or "30" in line] == [3, 3]


def test_other_processes_than_the_main_one_print_nothing(capsys):
    print_teacher(None)
    print_distilled(None)
    assert capsys.readouterr().out == ""
    print_teacher(Path("runs/t"))
    assert capsys.readouterr().out == "teacher in runs/t; distil it with: pidistill distill --teacher runs/t\n"
    print_teacher(Path("my runs/it's"))
    said = capsys.readouterr().out.partition("distil it with: ")[2]
    assert shlex.split(said) == ["pidistill", "distill", "--teacher", "my runs/it's"]


@pytest.mark.parametrize("name", ["[/red]", "[red]x", ":smile:", "a$b$"])
def test_cells_are_no_markup(name, capsys):
    print_rows([["model"], [f"student {name}"]])
    assert f"student {name}" in capsys.readouterr().out
