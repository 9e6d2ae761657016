"""Averages and followers have closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pidistill.core.profiles import WIDEST, solve_gamma
from pidistill.objectives.base import Follower, Objective
from pidistill.training.ema import EMA, Followers
from tests.own_nets import SIDE, Both, Normed


def follow(rate: float, values: list[float], first: int = 0) -> float:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, values[0])
    ema = EMA({"student": net}, [rate])
    for step, value in enumerate(values[1:], first):
        nn.init.constant_(net.weight, value)
        ema.update(step)
    return ema.networks[rate]["student"].weight.item()


def test_constant_weights_stay():
    assert follow(0.9, [2.0] * 20) == pytest.approx(2.0)


def test_far_from_the_start_the_rate_is_the_given_one():
    """From 0 to 1 after n updates: 1 - rate^n."""
    assert follow(0.9, [0.0] + [1.0] * 7, first=1000) == pytest.approx(1 - 0.9**7, rel=1e-5)


def test_the_rate_ramps_up():
    product = 1.0
    for step in range(5):
        product *= min(0.999, (1 + step) / (10 + step))
    assert follow(0.999, [0.0] + [1.0] * 5) == pytest.approx(1 - product, rel=1e-5)


def test_rate_zero_is_the_newest_weight():
    assert follow(0.0, [0.0, 1.0, 5.0]) == 5.0


@pytest.mark.parametrize("width", [0.001, 0.05, 0.1, WIDEST])
def test_a_profile_is_the_average_over_all_weights(width):
    """A step's weight is the profile's integral over it, (k^(gamma+1) - (k-1)^(gamma+1)) / t^(gamma+1); float64, 200 steps.

    Each update rounds at most three times, of numbers that are at most 4 times as large as the weights' standard deviation.
    """
    torch.manual_seed(0)
    net = nn.Linear(3, 2, bias=False).double()
    ema, thetas = EMA({"a": net}, [0.9], widths=[width]), []
    for step in range(200):
        nn.init.normal_(net.weight)
        thetas.append(net.weight.detach().clone())
        ema.update(step)
        found = ema.profiles[width]["a"].weight
        weights = (torch.arange(step + 2, dtype=torch.float64) / (step + 1)).pow(solve_gamma(width) + 1).diff()
        expected = torch.tensordot(weights, torch.stack(thetas), 1)
        assert (found - expected).abs().max() <= 200 * 3 * 4 * 2**-53
        assert step > 0 or torch.equal(found, thetas[0])
    assert list(ema.networks) == [0.9] and (width == 0.001 or (found - thetas[-1]).abs().max() > 0.1)


def test_the_average_is_a_copy_in_evaluation_mode():
    net = nn.Linear(2, 2).train()
    average = EMA({"a": net}, [0.9]).networks[0.9]["a"]
    assert net.training and not average.training and not any(p.requires_grad for p in average.parameters())
    assert average.weight.data_ptr() != net.weight.data_ptr()


def test_weights_that_move_are_still_followed():
    """Wrapping for several processes, or a move to another device, gives a parameter new storage."""
    net = nn.Linear(1, 1, bias=False)
    ema = EMA({"a": net}, [0.0])
    net.weight.data = net.weight.data.clone()
    nn.init.constant_(net.weight, 7.0)
    ema.update(0)
    assert ema.networks[0.0]["a"].weight.item() == 7.0


class Followed(Objective):
    """A network of one weight, and copies of it at these rates."""

    def __init__(self, net, **rates):
        super().__init__({"net": net}, followers={name: Follower("net", rate) for name, rate in rates.items()})

    def phases(self):
        return []


def test_followers_move_at_the_rate_of_the_step():
    """A constant rate forgets; 1 stays, 0 copies, and step / (step + 1) gives the mean of all weights so far."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 5.0)
    objective = Followed(net, still=lambda step: 1.0, copy=lambda step: 0.0, half=lambda step: 0.5,
                         mean=lambda step: step / (step + 1))
    followers, values = Followers(objective), [1.0, 2.0, 4.0, 8.0]
    assert {copy.weight.item() for copy in objective.copies.values()} == {5.0}
    assert not any(copy.training or copy.weight.requires_grad for copy in objective.copies.values())
    for step, value in enumerate(values):
        nn.init.constant_(net.weight, value)
        followers.update(step)
    found = {name: copy.weight.item() for name, copy in objective.copies.items()}
    half = sum(0.5 ** (4 - k) * value for k, value in enumerate(values)) + 0.5**4 * 5
    assert found == pytest.approx({"still": 5.0, "copy": 8.0, "half": half, "mean": sum(values) / 4}, rel=1e-6)
    assert net.weight.item() == 8.0 and net.weight.requires_grad


# Buffers -------------------------------------------------------------------------------------------------------------------


def buffers_of(net) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.named_buffers()}


def assert_same(ours, theirs) -> None:
    assert ours.keys() == theirs.keys() and [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("kind", [Normed, Both])
def test_averages_have_the_newest_buffers_at_every_rate(kind):
    """Batch normalisation's statistics and its counter, what a network makes and replaces; the weights are averaged."""
    net = kind().train()
    ema, start = EMA({"a": net}, [0.0, 0.5], widths=[0.1]), buffers_of(net)
    held = [networks["a"] for networks in (*ema.networks.values(), *ema.profiles.values())]  # and not asked for again
    for step in range(10**4, 10**4 + 3):
        net(torch.randn(5, SIDE), torch.zeros(5))
        with torch.no_grad():
            net.first.weight.add_(1)
        ema.update(step)
        for average in held:
            assert_same(buffers_of(average), buffers_of(net))
    assert held[0].norm.num_batches_tracked == 3 and not torch.equal(held[0].norm.running_var, start["norm.running_var"])
    assert len({average.first.weight[0, 0].item() for average in held}) == 3
    x, t = torch.randn(4, SIDE), torch.zeros(4)
    assert torch.equal(held[0](x, t), net.eval()(x, t))  # rate 0 is the network
    assert_same(buffers_of(held[0]), buffers_of(net))


def test_an_average_is_that_of_swa_utils():
    net = Normed().train()
    ema = EMA({"a": net}, [0.1])
    theirs = AveragedModel(net, multi_avg_fn=lambda averages, values, _: torch._foreach_lerp_(averages, values, 0.9))
    theirs.n_averaged.fill_(1)  # it begins as the network is, too
    for step in range(100, 103):
        net(torch.randn(5, SIDE), torch.zeros(5))
        with torch.no_grad():
            net.first.weight.mul_(1.5)
        ema.update(step)
        theirs.update_parameters(net)
        for p, q in zip(ema.networks[0.1]["a"].state_dict().values(), theirs.module.state_dict().values(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Normed, Both])
def test_followers_have_the_newest_buffers_but_those_that_stay(kind):
    objective = Followed(kind().train(), still=lambda step: 1.0, half=lambda step: 0.5, copy=lambda step: 0.0,
                         late=lambda step: 1.0 if step < 2 else 0.9)
    net, followers = objective.networks["net"], Followers(objective)
    start = buffers_of(net)
    for step in range(3):
        net(torch.randn(5, SIDE), torch.zeros(5))
        followers.update(step)
        for name, copied in objective.copies.items():
            stays = name == "still" or (name == "late" and step < 2)
            assert_same(buffers_of(copied), start if stays else buffers_of(net))
