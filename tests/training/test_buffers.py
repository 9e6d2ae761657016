"""Buffers: copies follow them, steps that are left out do not change them, what never changes costs nothing."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pidistill.training.buffers import Mirror, TrainedBuffers, adopt_buffers, keep_buffers
from tests.own_nets import SIDE, Counted, Normed


def call(net: nn.Module, k: int = 0, scale: float = 1.0) -> torch.Tensor:
    x = torch.randn(5, SIDE, generator=torch.Generator().manual_seed(k))
    return net(x * scale, torch.zeros(5))


def buffers_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.named_buffers()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("kind", [Normed, Counted])
def test_copies_have_the_network_s_buffers_after_every_step(kind):
    """As torch.optim.swa_utils has them by default; they are the copies' own."""
    net = kind().train()
    copies, average = [copy.deepcopy(net).eval() for _ in range(2)], AveragedModel(net)
    mirror, start = Mirror(net, copies), buffers_of(net)
    for k in range(3):
        call(net, k)
        mirror.update()
        if kind is Normed:  # it does not take buffers that are absent at first
            average.update_parameters(net)
            assert_same(buffers_of(copies[0]), buffers_of(average.module))
        for copied in copies:
            assert_same(buffers_of(copied), buffers_of(net))
            assert not {value.data_ptr() for value in copied.buffers()} & {value.data_ptr() for value in net.buffers()}
    changed = [name for name, value in buffers_of(net).items() if name not in start or not torch.equal(value, start[name])]
    assert len(changed) == {Normed: 3, Counted: 6}[kind]
    before = buffers_of(net)
    for copied in copies:
        call(copied.train())
    assert_same(buffers_of(net), before)


@pytest.mark.parametrize("change", [
    lambda net: net.big.add_(1), lambda net: net.big.data.mul_(0.5), lambda net: net.big[7, 3].fill_(5),
    lambda net: net.big.data[100:200].zero_(), lambda net: setattr(net, "big", net.big.clone()[:, ::2]),
    lambda net: setattr(net, "big", None), lambda net: net.double(), lambda net: net.big.set_(torch.zeros(3))])
@pytest.mark.parametrize("shape", [(1000, 50), (50, 1000)])
def test_large_buffers_are_followed_however_they_are_changed(change, shape):
    net = nn.Module()
    net.register_buffer("big", torch.arange(50_000.0).reshape(shape).T)  # not contiguous
    copied = copy.deepcopy(net)
    mirror = Mirror(net, [copied])
    with torch.no_grad():
        change(net)
    mirror.update()
    assert (net.big is copied.big is None) or (torch.equal(net.big, copied.big) and net.big.dtype == copied.big.dtype)
    assert net.big is None or net.big.data_ptr() != copied.big.data_ptr()


def test_batch_normalisation_of_many_channels_is_followed():
    """Its kernel changes the statistics behind their version counter."""
    net = nn.BatchNorm1d(6000).train()
    copied, version = copy.deepcopy(net), net.running_mean._version
    mirror = Mirror(net, [copied])
    for _ in range(2):
        net(torch.randn(4, 6000))
        mirror.update()
        assert_same(buffers_of(net), buffers_of(copied))
    assert version == net.running_mean._version or not torch.equal(net.running_mean, torch.zeros(6000))


def test_what_never_changes_costs_nothing():
    """A table of 200 MB: a copy of it takes some 50 ms, and three copies as much again."""
    net = nn.Module()
    net.register_buffer("table", torch.zeros(50_000_000))
    for k in range(30):
        net.register_buffer(f"filter{k}", torch.ones(4))
    copied = nn.Module()
    for name, value in net.named_buffers():
        copied.register_buffer(name, value[:0] if name == "table" else value.clone())  # a copy would show
    mirror, trained = Mirror(net, [copied]), TrainedBuffers([net])
    trained.settle(torch.tensor(False))
    trained.agree()
    began = time.perf_counter()
    for _ in range(100):
        mirror.update()
        trained.settle(torch.tensor(False))
        trained.agree()
    assert time.perf_counter() - began < 0.2  # 2 ms a step, on a machine that does other things too
    assert copied.table.numel() == 0 and trained.places == trained.kept == []


def test_a_buffer_of_the_inference_mode_is_replaced():
    net = Normed()
    copied = copy.deepcopy(net)
    mirror = Mirror(net, [copied])
    with torch.inference_mode():
        copied.norm.running_mean = torch.zeros(SIDE)
        net.norm.running_var = torch.full((SIDE,), 7.0)
    mirror.update()
    assert_same(buffers_of(net), buffers_of(copied))
    assert not copied.norm.running_mean.is_inference() and not copied.norm.running_var.is_inference()


@pytest.mark.parametrize("kind", [Normed, Counted])
def test_a_step_that_is_left_out_does_not_change_buffers(kind):
    net = kind().train()
    trained = TrainedBuffers([net])
    for k, bad in enumerate([False, True, False, True, True, False]):
        before = buffers_of(net)
        call(net, k, scale=torch.nan if bad else 1.0)
        assert bad == any(bool(value.isnan().any()) for value in net.buffers())
        plain = buffers_of(net)
        trained.settle(torch.tensor(bad))
        trained.agree()
        assert_same(buffers_of(net), before if bad else plain)


def test_the_first_step_may_be_the_bad_one():
    net = Normed().train()
    before, trained = buffers_of(net), TrainedBuffers([net])
    call(net)
    trained.settle(torch.tensor(True))
    trained.agree()
    assert_same(buffers_of(net), before) and len(trained.places) == 3


@pytest.mark.parametrize("kind", [Normed, Counted])
def test_what_is_tried_on_a_network_leaves_no_trace(kind):
    net = kind().train()
    before, homes = buffers_of(net), [id(value) for value in net.buffers()]
    with pytest.raises(ValueError, match="of the trial"), keep_buffers([net]):
        call(net)
        assert len(buffers_of(net)) > len(before) or kind is Normed
        raise ValueError("of the trial")
    assert_same(buffers_of(net), before)
    assert [id(value) for value in net.buffers()] == homes


def test_buffers_that_another_replaced_are_adopted():
    net = Counted().train()
    whole = copy.deepcopy(net, {id(value): value for value in net.buffers()})  # whose buffers are the network's own
    call(whole)
    assert net.calls == 1 and net.size == 1  # changed in place, and replaced
    adopt_buffers(net, whole)
    assert_same(buffers_of(net), buffers_of(whole))
