"""The kernels are compiled once, or PyTorch's operators take their place."""

from __future__ import annotations

import platform
import subprocess

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
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


def test_a_file_for_other_instructions_is_not_taken(unbuilt, monkeypatch):
    """Of a home folder that two kinds of machine share: what AVX-512 has made is made anew without it."""
    assert build.load_library() is not None
    lines = build.describe_processor()
    assert lines
    monkeypatch.setattr(build, "describe_processor", lambda: [line.replace(" avx512f", "") + " other" for line in lines])
    build.load_library.cache_clear()
    assert build.load_library() is not None
    assert len([path for path in (unbuilt / "native").iterdir() if path.suffix == ".so"]) == 2


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
def test_every_width_of_vectors_gives_the_same_bits(unbuilt, monkeypatch):
    """Each output is one sum in one order, however many of them a register holds."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 48, 7, 9), torch.randn(80, 48, 3, 3) / 20, torch.randn(80)
    norm, results = nn.GroupNorm(12, 48), []
    for isa in ("", "avx2"):
        monkeypatch.setenv("PIDISTILL_NATIVE_ISA", isa)
        build.load_library.cache_clear()
        leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
        y = native.norm_silu_conv(leaves[0], norm, *leaves[1:])
        results.append([y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    assert len([path for path in (unbuilt / "native").iterdir() if path.suffix == ".so"]) == 2
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_unknown_instructions_are_refused(unbuilt, monkeypatch):
    monkeypatch.setenv("PIDISTILL_NATIVE_ISA", "sse9")
    with pytest.raises(PidistillError, match="PIDISTILL_NATIVE_ISA must be avx2"):
        build.load_library()
