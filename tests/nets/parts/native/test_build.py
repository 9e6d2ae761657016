"""The kernels are compiled once, or PyTorch's operators take their place."""

from __future__ import annotations

import subprocess

import pytest
import torch
from torch.nn import functional as F

from pidistill.nets.parts import native
from pidistill.nets.parts.native import build

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler, or not Linux")


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """No compiled file is known or lies in the cache."""
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path))
    build.load_library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    build.load_library.cache_clear()


def test_it_is_compiled_once(unbuilt, monkeypatch):
    assert build.load_library() is not None
    found = list((unbuilt / "native").iterdir())
    assert len(found) == 1 and found[0].suffix == ".so"
    build.load_library.cache_clear()
    run, ran = subprocess.run, []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: (ran.append(command), run(command, **options))[1])
    assert build.load_library() is not None and not [command for command in ran if "-o" in command]


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler_it_says_so_and_goes_on(unbuilt, monkeypatch, capsys, compiler):
    monkeypatch.setenv("CC", compiler)
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    for _ in range(2):
        torch.testing.assert_close(native.conv3x3(x, weight, None), F.conv2d(x, weight, padding=1))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "kernels cannot be compiled" in said[0]


def test_it_can_be_switched_off(unbuilt, monkeypatch):
    monkeypatch.setenv("PIDISTILL_NATIVE", "0")
    assert build.load_library() is None and not (unbuilt / "native").exists()
