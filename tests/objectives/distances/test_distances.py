"""The distances: their protocol, and values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.objectives.distances._perceptual import Perceptual
from pidistill.objectives.distances.base import Distance
from pidistill.objectives.distances.features import Features
from pidistill.objectives.distances.l1 import L1
from pidistill.objectives.distances.l2 import L2
from pidistill.objectives.distances.pseudo_huber import PseudoHuber

A = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])[:, None]
B = torch.tensor([[[1.0, 0.0], [3.0, 8.0]], [[1.0, 1.0], [1.0, -1.0]]])[:, None]


class Pixels(Perceptual):
    """The shared code of perceptual distances over the pixels themselves."""

    def __init__(self):
        super().__init__(size=None, precision="fp32", channels_last=False, microbatch=2)
        self.normalize = False

    def layers(self, x):
        return [x]


@pytest.mark.parametrize("make", [L1, L2, PseudoHuber, Pixels, lambda: Features(net="digits_perceptual")])
def test_protocol(make):
    """One value a sample, zero where the sides are equal and positive elsewhere, and no value of another sample's."""
    distance = make()
    assert isinstance(distance, Distance)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(5, 1, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    b[1], b[3] = a[1], a[3]
    d = distance(prediction=a, target=b)
    assert d.shape == (5,) and d.dtype == torch.float32
    assert (d == 0).tolist() == [False, True, False, True, False] and bool((d >= 0).all())
    torch.testing.assert_close(torch.cat([distance(x, y) for x, y in zip(a.split(1), b.split(1))]), d)
    slopes = torch.autograd.grad(distance(a.requires_grad_(), b.requires_grad_())[0], (a, b))
    for slope in slopes:
        assert bool(slope[0].abs().sum() > 0) and not bool(slope[1:].any())


def test_means_over_a_sample():
    assert L1()(A, B).tolist() == [1.5, 1.0]
    assert L2()(A, B).tolist() == [5.0, 1.0]


def test_pseudo_huber_is_a_norm_far_away_and_a_square_nearby():
    k = 0.5 * math.sqrt(4)
    torch.testing.assert_close(PseudoHuber(c=0.5)(A, B), torch.tensor([math.sqrt(20 + k**2) - k, math.sqrt(4 + k**2) - k]))
    far = PseudoHuber(c=1e-6)(A, B)
    torch.testing.assert_close(far, torch.tensor([20.0, 4.0]).sqrt(), rtol=1e-4, atol=0)
    near = PseudoHuber(c=100.0)(A.double(), B.double())
    torch.testing.assert_close(near, torch.tensor([20.0, 4.0]).double() / (2 * 200), rtol=1e-3, atol=0)


@pytest.mark.parametrize("c", [0, -1, math.nan])
def test_pseudo_huber_needs_a_positive_scale(c):
    with pytest.raises(PidistillError, match=r"c must be positive"):
        PseudoHuber(c=c)
