"""Networks in shards, with a single process; several are in tests/system/test_processes.py."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from pidistill.core.errors import PidistillError
from pidistill.training.ema import EMA, Followers
from pidistill.training.sharding import (
    ShardedNetworks,
    accumulate_locally,
    copy_without_values,
    fill_skeleton,
    gather_whole,
    is_fsdp_launch,
    shard,
    shard_like,
    to_local,
)
from tests.training.test_ema import Followed

CPU = torch.device("cpu")


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.mark.parametrize("use, version, expected", [("true", "2", True), ("True", "2", True), ("false", "2", False),
                                                    (None, "2", False)])
def test_a_launch_with_fsdp_is_known_by_its_environment(monkeypatch, use, version, expected):
    for name, value in (("ACCELERATE_USE_FSDP", use), ("FSDP_VERSION", version)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert is_fsdp_launch() == expected


@pytest.mark.parametrize("version", ["1", None])
def test_another_version_of_fsdp_is_refused(monkeypatch, version):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version) if version else monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(PidistillError, match="of FSDP, version 2 alone works"):
        is_fsdp_launch()


def test_a_copy_without_values_is_filled_with_others():
    net = make_net()
    net[1].running_mean.fill_(3)
    skeleton = copy_without_values(net)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"} and not skeleton.training and net.training
    values = {name: torch.full_like(p, 2) for name, p in net.named_parameters()}
    filled = fill_skeleton(skeleton, values)
    assert all((p == 2).all() and not p.requires_grad for p in filled.parameters())
    assert filled[1].running_mean is not skeleton[1].running_mean
    given = torch.full((5,), 4.0)
    assert fill_skeleton(skeleton, values, {"1.running_mean": given})[1].running_mean is given
    assert (filled[1].running_mean == 3).all() and {p.device.type for p in skeleton.parameters()} == {"meta"}
    x = torch.ones(4, 3)
    assert torch.equal(filled(x), nn.Sequential(*filled)(x)) and torch.isfinite(filled(x)).all()


def test_whole_tensors_pass_through():
    p = nn.Parameter(torch.ones(2))
    for function in (gather_whole, to_local):
        assert function(p).data_ptr() == p.data_ptr() and not function(p).requires_grad
    assert shard_like(p, torch.zeros(2)) is p


def test_shards_are_gathered_and_laid_out_again(group):
    net, plain = make_net(), make_net()
    assert shard({"net": net}, 1, CPU)["net"].network is net
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert isinstance(p, DTensor) and torch.equal(gather_whole(p), q) and torch.equal(to_local(p), q)
        again = shard_like(2 * q.detach(), p)
        assert isinstance(again, DTensor) and again.placements == p.placements and torch.equal(gather_whole(again), 2 * q)


def test_averages_of_shards_can_be_called_once_they_are_gathered(group):
    net, plain = make_net(), make_net()
    skeletons = {"net": copy_without_values(net)}
    shard({"net": net}, 1, CPU)
    ema = EMA({"net": net}, [0.0], skeletons)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
        for p in plain.parameters():
            p.mul_(2)
    ema.update(0)
    x = torch.ones(4, 3)
    assert torch.equal(ema.gather(True)[0.0]["net"](x), plain.eval()(x)) and ema.gather(False) == {}


def test_profiles_of_shards_are_gathered_on_the_main_process(group):
    net, plain = make_net(), make_net()
    skeletons = {"net": copy_without_values(net)}
    shard({"net": net}, 1, CPU)
    sharded, whole = EMA({"net": net}, [0.9], skeletons, [0.05, 0.1]), EMA({"net": plain}, [0.9], None, [0.05, 0.1])
    for step in range(3):
        for p in (*net.parameters(), *plain.parameters()):
            p.detach().mul_(1.5)
        sharded.update(step)
        whole.update(step)
    found, expected = sharded.gather_profiles(True), whole.gather_profiles(True)
    assert found.keys() == expected.keys() == {"net-0.05", "net-0.1"} and sharded.gather_profiles(False) == {}
    for file, tensors in expected.items():
        assert tensors.keys() == found[file].keys() == plain.state_dict().keys()
        assert all(torch.equal(value, found[file][name]) for name, value in tensors.items())
    assert not torch.equal(expected["net-0.1"]["0.weight"], expected["net-0.05"]["0.weight"])


def test_gradients_add_up_while_none_are_exchanged(group):
    net, plain = make_net(), make_net()
    gathered = shard({"net": net}, 1, CPU)["net"]
    for k in (1.0, 2.0):
        x = k * torch.arange(12.0).reshape(4, 3)
        with accumulate_locally([gathered]) if k == 1 else nullcontext():
            gathered(net, x).square().sum().backward()
        plain(x).square().sum().backward()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(gather_whole(p.grad), q.grad)


def test_a_single_number_has_no_shards():
    net = nn.Module()
    net.gain = nn.Parameter(torch.ones(()))
    with pytest.raises(PidistillError, match="no shards of a single number, such as gain"):
        shard({"net": net}, 1, CPU)


def test_networks_in_shards_come_whole_where_they_are_not_trained(group):
    """Gathered anew for every phase, with the weights that they have then, and in the mode that they are in."""
    nets, plain = {"a": make_net(), "b": make_net().eval()}, make_net().eval()
    networks = ShardedNetworks(nets, {name: copy_without_values(net) for name, net in nets.items()})
    shard(nets, 1, CPU)
    x = torch.ones(4, 3)
    with networks.train_only(["a"]):
        assert networks["a"] is nets["a"] and networks["b"] is networks["b"] is not nets["b"]
        assert not networks["b"].training and not any(p.requires_grad for p in networks["b"].parameters())
        assert torch.equal(networks["b"](x), plain(x))
    assert dict(networks.items()) == nets and networks["a"].training
    for net in (nets["b"], plain):
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(2)
    with networks.train_only([]):
        assert torch.equal(networks["b"](x), plain(x))


# Buffers -------------------------------------------------------------------------------------------------------------------


class Inner(nn.Module):
    """Statistics that are replaced, beside those that are changed in place."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("size", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.size = self.size + 1
        return self.norm(self.layer(x)) * self.size


def test_averages_and_followers_of_shards_have_the_newest_buffers(group):
    """Those that are gathered, and what a phase gets of them."""
    torch.manual_seed(0)
    net, plain = Inner(), Inner()
    plain.load_state_dict(net.state_dict())
    objective = Followed(net, half=lambda step: 0.5, still=lambda step: 1.0)
    start, skeletons = copy.deepcopy(plain).eval(), {"net": copy_without_values(net)}
    gathered = shard({"net": net}, 1, CPU)["net"]
    objective.networks = ShardedNetworks({"net": net}, skeletons)
    ema, followers, x = EMA({"net": net}, [0.9], skeletons), Followers(objective, skeletons), torch.randn(6, 3)
    for step in range(2):
        gathered(net.train(), x + step)
        plain.train()(x + step)
        ema.update(step)
        followers.update(step)
    expected, average = plain.eval()(x), ema.gather(True)[0.9]["net"]
    assert torch.equal(average(x), expected) and average.norm.num_batches_tracked == 2
    with objective.copies.train_only(()):
        assert torch.equal(objective.copies["half"](x), expected) and torch.equal(objective.copies["still"](x), start(x))


def test_a_constant_of_a_phase_changes_the_buffers_of_its_network(group):
    """As a network does that is not in shards: in place, and by replacing them."""
    nets, plain = {"a": Inner().train()}, Inner().train()
    plain.load_state_dict(nets["a"].state_dict())
    networks = ShardedNetworks(nets, {"a": copy_without_values(nets["a"])})
    shard(nets, 1, CPU)
    x = torch.randn(6, 3)
    for _ in range(2):
        with networks.train_only([]):
            assert torch.equal(networks["a"](x), plain(x)) and torch.equal(networks["a"](2 * x), plain(2 * x))
        for name, value in plain.named_buffers():
            assert torch.equal(nets["a"].get_buffer(name), value), name
    assert nets["a"].size == 5
