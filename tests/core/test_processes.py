"""One process, or several: which of them speaks and writes."""

from __future__ import annotations

import pytest

from pidistill.core import processes
from pidistill.core.errors import PidistillError


def test_the_main_process_alone_speaks(capsys, monkeypatch):
    processes.say("one line [/red] of :smile: names\nand \x1b[31mcolours " + "x" * 200)
    assert capsys.readouterr().err == "one line [/red] of :smile: names?and ?[31mcolours " + "x" * 200 + "\n"
    monkeypatch.setenv("RANK", "1")
    processes.say("again")
    assert capsys.readouterr().err == "" and not processes.is_main()


def test_an_unknown_device_is_one_line():
    assert processes.choose_device("cpu").type == "cpu"
    with pytest.raises(PidistillError, match="the device 'cpus' cannot be used"):
        processes.choose_device("cpus")
