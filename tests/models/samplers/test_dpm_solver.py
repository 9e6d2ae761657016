"""The steps of DPM-Solver, by their orders."""

from __future__ import annotations

import pytest

from pidistill.core.errors import PidistillError
from pidistill.models.samplers.dpm_solver import plan_steps

TIMES = [80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_interval_is_a_step_and_the_one_to_0_is_of_the_first_order(order):
    assert plan_steps([4.0, 2.0, 1.0], order, False) == [(4.0, 2.0, order), (2.0, 1.0, order)]
    assert plan_steps([4.0, 2.0, 0.0], order, False) == [(4.0, 2.0, order), (2.0, 0.0, 1)]


@pytest.mark.parametrize("evaluations, orders", [(1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 2, 1])])
def test_the_fast_schedule_spends_its_evaluations_as_the_paper_does(evaluations, orders):
    """Section 3.4: steps of order 3, and what remains with orders 2 and 1; a step of order k spans k intervals."""
    steps = plan_steps(TIMES[:evaluations + 1], 3, True)
    assert [order for _, _, order in steps] == orders and sum(orders) == evaluations
    assert steps[0][0] == TIMES[0] and steps[-1][1] == TIMES[evaluations]
    assert all(TIMES.index(u) - TIMES.index(t) == order for t, u, order in steps)
    assert plan_steps([*TIMES[:evaluations + 1], 0.0], 3, True) == [*steps, (TIMES[evaluations], 0.0, 1)]


def test_the_fast_schedule_has_no_other_order():
    with pytest.raises(PidistillError, match="leave order=2 out"):
        plan_steps(TIMES, 2, True)
