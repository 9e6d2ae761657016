"""Values of the distances, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.objectives.distances.l1 import L1
from pidistill.objectives.distances.l2 import L2
from pidistill.objectives.distances.pseudo_huber import PseudoHuber

A = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])[:, None]
B = torch.tensor([[[1.0, 0.0], [3.0, 8.0]], [[1.0, 1.0], [1.0, -1.0]]])[:, None]


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
