"""Root mean square over images and pixels."""

import math

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.evaluation.metrics.trajectory_rmse import rmse


def test_values():
    a = torch.zeros(2, 1, 1, 2)
    b = torch.tensor([[[[3.0, 0.0]]], [[[0.0, 4.0]]]])
    assert rmse(a, b) == pytest.approx(math.sqrt(25 / 4))
    assert rmse(b, b) == 0


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (1, 3, 8, 8), (4, 3, 1, 1)])
def test_solutions_of_another_shape_are_not_broadcast(shape):
    with pytest.raises(PidistillError, match="must be of one shape"):
        rmse(torch.zeros(4, 3, 8, 8), torch.zeros(shape))
