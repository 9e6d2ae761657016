"""One process or several: which of them speaks; the choice of a device: what is not there is one line of ours."""

from __future__ import annotations

import pytest
import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.processes import choose_device


def test_the_main_process_alone_speaks(capsys, monkeypatch):
    processes.say("one line [/red] of :smile: names\nand \x1b[31mcolours " + "x" * 200)
    assert capsys.readouterr().err == "one line [/red] of :smile: names?and ?[31mcolours " + "x" * 200 + "\n"
    monkeypatch.setenv("RANK", "1")
    processes.say("again")
    assert capsys.readouterr().err == "" and not processes.is_main()


def test_sharing_ends_with_its_block(monkeypatch):
    """A measurement by one process of several would wait for the others for ever."""
    def join():
        processes.group = "new"

    monkeypatch.setattr(processes, "join", join)
    monkeypatch.setattr(processes, "group", None)
    with pytest.raises(KeyboardInterrupt), processes.sharing():
        assert processes.group == "new"
        raise KeyboardInterrupt
    assert processes.group is None


@pytest.mark.parametrize("name, words", [
    ("mps", "this is no Mac with Apple silicon, or its PyTorch is built without MPS"), ("mps:0", "no Mac"),
    ("cuda", "no GPU of NVIDIA's"), ("cuda:1", "no GPU of NVIDIA's"), ("xpu", "cannot be used"), ("meta", "cannot be used"),
    ("hpu", "cannot be used"), ("vulkan", "cannot be used"),
    ("nonsense", "is not known; name auto, cpu, cuda, cuda:1 or mps"),
    ("", "is not known"), ("GPU", "is not known"), ("cuda:x", "is not known")])
def test_a_device_that_is_not_there_is_one_line(monkeypatch, name, words):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PidistillError, match=f"the device {name!r}") as caught:
        choose_device(name)
    assert words in str(caught.value) and len(str(caught.value)) < 250


def test_one_of_too_few_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, words in ((1, "cuda:0 alone"), (4, "cuda:0 to cuda:3")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(PidistillError, match=f"this machine has {words}"):
            choose_device("cuda:4")


def test_the_cpu_is_there():
    assert choose_device("cpu") == torch.device("cpu") and choose_device("cpu:0").type == "cpu"


def test_auto_takes_cuda_unless_accelerate_is_told_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device() == torch.device("cuda", 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_device() == torch.device("cpu")
