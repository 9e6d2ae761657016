"""Noise levels: how they are spread, their bounds, and that the teacher knows them."""

from __future__ import annotations

import numpy as np
import pytest

from pidistill.models.denoiser import Preconditioned
from tests.helpers import SHAPE, draw, tiny_teacher
from tests.models.test_preconditioning import SPECS
from tests.objectives.test_pid_corrected import POINTS, corrected


def levels(objective, number: int, count: int = 400) -> np.ndarray:
    part = len(objective.phases()[number].parts) - 1
    return draw(objective, range(count), number=number, part=part)["t"].double().numpy()


def test_levels_are_the_grid_s():
    objective = corrected()
    expected = objective.grid.t.float().double().numpy()
    for number in (0, 1):
        drawn, counts = np.unique(levels(objective, number), return_counts=True)
        np.testing.assert_array_equal(drawn, np.sort(expected))
        assert counts.min() > 400 / POINTS / 3
    below = levels(corrected(level_max=2.0), 1)
    assert below.max() <= 2 and below.min() == expected.min()
    for kind in ("grid", "lognormal"):
        between = levels(corrected(levels=kind, level_min=0.1, level_max=2.0, p_std=5.0), 1)
        assert 0.1 <= between.min() < 0.3 and 1 < between.max() <= 2.0001


def test_levels_are_lognormal():
    objective = corrected(fake_levels="lognormal", p_mean=-0.5, p_std=0.7)
    ln_t = np.log(levels(objective, 0))
    assert abs(ln_t.mean() + 0.5) < 0.15 and abs(ln_t.std() - 0.7) < 0.1
    assert len(np.unique(levels(objective, 1))) == POINTS
    assert levels(corrected(levels="lognormal", p_mean=9.0, level_max=3.0), 1).max() == pytest.approx(3.0)


@pytest.mark.parametrize("kind", ["grid", "lognormal"])
def test_levels_are_those_that_the_teacher_knows(kind):
    teacher = Preconditioned(tiny_teacher().model, SHAPE, 3, preconditioning=SPECS["epsilon"], t_min=0.1, t_max=20)
    drawn = levels(corrected(teacher, levels=kind), 1)
    known = teacher.times.float().double().numpy()
    assert np.isin(drawn, known).all() and len(np.unique(drawn)) > 5
