"""Root mean square over images and pixels."""

import math

import pytest
import torch

from pidistill.evaluation.metrics.trajectory_rmse import rmse


def test_values():
    a = torch.zeros(2, 1, 1, 2)
    b = torch.tensor([[[[3.0, 0.0]]], [[[0.0, 4.0]]]])
    assert rmse(a, b) == pytest.approx(math.sqrt(25 / 4))
    assert rmse(b, b) == 0
