"""Compiled where there is a compiler; one line, and the same numbers, where there is none."""

from __future__ import annotations

import copy
import functools
import re

import pytest
import torch
from torch import nn

from pidistill.core.compiling import try_compile
from pidistill.core.errors import PidistillError
from pidistill.jobs.sample import pad_batches
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.training.setup import call_module


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))


def fail_to_compile(graph, inputs):
    raise RuntimeError("No working C++ compiler found\nin this test")


def test_a_compiled_module_is_the_same_module(net):
    plain, x, graphs = copy.deepcopy(net), torch.randn(3, 4), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    assert try_compile(net, what="the network", backend=backend) is net
    assert torch.equal(net(x), plain(x)) and len(graphs) == 1
    assert list(net.state_dict()) == list(plain.state_dict()) and net[0].in_features == 4
    net(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.equal(net[0].weight.grad, plain[0].weight.grad)
    assert torch.equal(copy.deepcopy(net)(x), plain(x)) and len(graphs) == 1  # a copy is not compiled


def test_without_a_compiler_one_line_says_so_and_eager_goes_on(net, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    plain, x = copy.deepcopy(net), torch.randn(3, 4)
    try_compile(net, what="the student", backend=fail_to_compile)
    double = try_compile(lambda x: 2 * x, what="the loss", backend=fail_to_compile)
    for _ in range(2):
        assert torch.equal(net(x), plain(x)) and torch.equal(double(x), 2 * x)
    net(x).sum().backward()
    assert net[0].weight.grad is not None
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["the student is not compiled, and slower",
                                                      "the loss is not compiled, and slower"]
    assert "No working C++ compiler found" in lines[0]


def test_errors_of_the_function_itself_are_raised(net, capsys):
    plain, x = copy.deepcopy(net), torch.randn(3, 5)
    try_compile(net, what="the network", backend="eager")
    with pytest.raises(RuntimeError) as expected:
        plain(x)
    with pytest.raises(RuntimeError, match="^" + re.escape(str(expected.value))):  # in its own words, not the compiler's
        net(x)
    assert "not compiled" not in capsys.readouterr().err


def test_a_compiled_teacher_that_raises_is_one_line():
    def denoise(x, t, y):
        return x[:, :2] + x

    teacher = FunctionDenoiser(denoise, (5,), t_min=0.1, t_max=2.0, sigma_data=0.5)
    call = try_compile(functools.partial(call_module, teacher), what="the teacher", backend="eager")
    with pytest.raises(PidistillError, match=r"denoise failed on x \(3, 5\) float32, t = 1: RuntimeError: The size of"):
        call(torch.randn(3, 5), 1.0)


def test_the_last_batch_is_padded_instead_of_compiled_anew(net):
    shapes = []

    def call(x, t, labels=None):
        shapes.append((len(x), t if isinstance(t, float) else len(t), None if labels is None else len(labels)))
        return x * (t if isinstance(t, float) else t[:, None]) + (0 if labels is None else labels[:, None])

    full, x, y = pad_batches(call, 5), torch.randn(3, 4), torch.tensor([1, 2, 3])
    assert torch.equal(full(x, 2.0), 2 * x) and torch.equal(full(x, 2.0, y), 2 * x + y[:, None])
    assert torch.equal(full(x, y.float(), y), x * y[:, None] + y[:, None])
    assert torch.equal(full(x.repeat(2, 1)[:5], 2.0), 2 * x.repeat(2, 1)[:5])
    assert shapes == [(5, 2.0, None), (5, 2.0, 5), (5, 5, 5), (5, 2.0, None)]


@pytest.mark.slow
def test_the_real_compiler(net, capsys):
    plain, x = copy.deepcopy(net), torch.randn(3, 4)
    try_compile(net, what="the network", dynamic=False)
    torch.testing.assert_close(net(x), plain(x))
    net(x).square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(net[0].weight.grad, plain[0].weight.grad)
    assert "not compiled" not in capsys.readouterr().err
