"""The Karras grid."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.grid import Grid, karras_times


def test_karras_formula():
    t = karras_times(18, 0.002, 80.0, 7.0)
    for i in (1, 9, 16):
        assert t[i].item() == pytest.approx((80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rel=1e-12)
    assert t.dtype == torch.float64 and len(t) == 18


@pytest.mark.parametrize("t_min, t_max, rho", [(0.002, 80.0, 7.0), (0.01, 157.4, 3.0), (0.029, 14.6, 1.0)])
@pytest.mark.parametrize("points", [2, 3, 1000])
def test_ends_are_exact_and_times_fall(points, t_min, t_max, rho):
    t = karras_times(points, t_min, t_max, rho)
    assert t[0] == t_max and t[-1] == t_min and bool((t[1:] < t[:-1]).all())
    assert Grid(t).points == points


@pytest.mark.parametrize("points, t_min, t_max, words", [
    (1, 0.1, 1, "grid.points must be at least 2, got 1"), (5, 1, 1, "t_min < t_max"), (5, 0, 1, "t_min=0")])
def test_impossible_grids_are_refused(points, t_min, t_max, words):
    with pytest.raises(PidistillError, match=words):
        karras_times(points, t_min, t_max, 7.0)


@pytest.mark.parametrize("t", [[1.0, 2.0], [2.0, 2.0], [1.0, 0.0], [1.0, -1.0], [float("nan"), 1.0]])
def test_grid_refuses_times_that_do_not_fall(t):
    with pytest.raises(PidistillError, match="strictly descending"):
        Grid(torch.tensor(t, dtype=torch.float64))
