"""The multilayer perceptron; its contract is in test_contracts.py."""

from __future__ import annotations

import pytest
import torch

from pidistill.nets.mlp import MLP


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_any_shape(shape):
    x = torch.randn(3, *shape)
    assert MLP(shape, width=8, depth=1)(x, torch.zeros(3)).shape == x.shape


def test_no_label_differs_from_every_label():
    net, x = MLP((2,), num_classes=3, width=8), torch.randn(1, 2)
    outs = [net(x, torch.zeros(1), y) for y in (None, *(torch.tensor([k]) for k in range(3)))]
    assert all(not torch.equal(a, b) for n, a in enumerate(outs) for b in outs[:n])


def test_smooth_in_time():
    """PID differentiates in t: steps of c_noise that halve must halve the difference."""
    net, x = MLP((2,), width=32).double(), torch.randn(1, 2, dtype=torch.float64)
    at = lambda c: net(x, torch.tensor([c], dtype=torch.float64))
    d1, d2 = (at(0.1 + h) - at(0.1) for h in (1e-3, 5e-4))
    torch.testing.assert_close(d1 / d2, torch.full_like(d1, 2.0), rtol=1e-2, atol=0)
