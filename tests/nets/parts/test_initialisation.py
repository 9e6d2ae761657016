"""First weights: their spread, and what they are drawn from."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.nets.parts.initialisation import kaiming, normal, xavier, zeros
from pidistill.nets.parts.unet import Linear


def test_first_weights_have_the_stated_spread():
    """Standard deviation over fan-in 300, fan-out 200; uniform on +-limit, normal for Dhariwal's classes."""
    for init, weight, bias in ((xavier(), math.sqrt(2 / 500), 0), (xavier(0.1), 0.1 * math.sqrt(2 / 500), 0),
                               (kaiming(math.sqrt(1 / 3)), math.sqrt(1 / 900), math.sqrt(1 / 900)),
                               (zeros, 0, 0), (normal, 1, 0)):
        layer = Linear(300, 200, init=init)
        assert layer.weight.std().item() == pytest.approx(weight, rel=0.02, abs=0)
        assert layer.bias.std().item() == pytest.approx(bias, rel=0.2, abs=0)
        assert init is normal or layer.weight.abs().max() <= weight * math.sqrt(3)


@pytest.mark.parametrize("init", [xavier(2.0), kaiming(2.0)])
def test_uniform_weights_fill_their_interval_evenly(init):
    """With fan-in 30 and fan-out 20 the limits are gain sqrt(6/50) and gain sqrt(3/30)."""
    weight, _ = init((200, 300), 30, 20)
    limit = weight.abs().max().item()
    assert limit == pytest.approx(2 * math.sqrt(6 / 50 if init.__qualname__.startswith("xavier") else 3 / 30), rel=1e-3)
    quarters = torch.histc(weight, 4, -limit, limit) / weight.numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.01)


def test_weights_are_the_first_draws_of_the_seed():
    """A run's first weights depend on the order of draws: a layer's weight before its bias, nothing for a constant."""
    for init, draws in ((xavier(), 1), (kaiming(), 2), (normal, 1), (zeros, 0)):
        torch.manual_seed(3)
        weight, bias = init((4, 5), 5, 4)
        after = torch.rand(1)
        assert weight.shape == (4, 5) and bias.shape == (4,)
        torch.manual_seed(3)
        for shape in ((4, 5), (4,))[:draws]:
            torch.randn(*shape) if init is normal else torch.rand(*shape)
        assert torch.equal(torch.rand(1), after)
