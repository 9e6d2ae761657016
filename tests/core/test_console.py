"""Text reaches the terminal as it is."""

from __future__ import annotations

import pytest

from pidistill.core.console import console, track


@pytest.mark.parametrize("name", ["a[/b]", "[red]x", "runs/:smile:", "[link=x]y[/link]", "a\\[b]"])
def test_names_are_no_markup(name, capsys):
    console.print(f"{name} goes on", style="bold red", soft_wrap=True)
    assert list(track(range(3), name)) == [0, 1, 2]
    assert capsys.readouterr().err == f"{name} goes on\n"
