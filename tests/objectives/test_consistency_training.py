"""Consistency training against a plain transcription of the improved recipe; its schedule, options and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.jobs.stages import list_stages
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.student_init import make_student
from pidistill.objectives.base import Setup, check_contract
from pidistill.objectives.consistency_training import ConsistencyTraining, count_doubling_points, weigh_intervals
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.helpers import MLP, SHAPE, draw, grid_of
from tests.objectives.test_consistency import (
    IMAGES,
    POINTS,
    batch_of,
    close,
    consistency_function,
    double,
    gradient,
    setup_of,
)

# The mathematics -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_paper():
    """Song and Dhariwal (2024), Table 1: pseudo-Huber, c = 0.00054 sqrt(d), over t_{i+1} - t_i; the target is no average."""
    objective = double(ConsistencyTraining(setup_of()))
    batch = batch_of(objective)
    y, labels, z, late, early = (batch[key] for key in ("y", "labels", "z", "t", "u"))
    f = lambda t: consistency_function(objective.networks["student"], y + t[:, None, None, None] * z, t, labels)
    c = 0.00054 * math.sqrt(math.prod(SHAPE))
    d = ((f(late) - f(early).detach()).square().sum((1, 2, 3)) + c**2).sqrt() - c
    plain = d / (late - early)
    close(objective.loss(batch), plain)
    close(gradient(objective, objective.loss(batch).mean()), gradient(objective, plain.mean()))
    assert objective.calls.keys() == {"distance"} and not objective.followers


def test_the_number_of_points_doubles():
    """K' = floor(K / (log2 floor(s1/s0) + 1)); CIFAR-10's eight numbers 11, 21, ..., 1281 have 50,000 steps each."""
    found = [count_doubling_points(k, 400_000, 10, 1280) for k in range(0, 400_000, 50_000)]
    assert found == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [count_doubling_points(k, 400_000, 10, 1280) for k in (49_999, 399_999, 10**7)] == [11, 1281, 1281]
    assert count_doubling_points(5, 100, 10, 25) == 11 and count_doubling_points(99, 100, 10, 25) == 21
    assert count_doubling_points(4, 3, 10, 10**6) > 10  # fewer steps than doublings


def test_times_are_a_discretised_lognormal():
    """P(sigma_i) ~ erf((ln sigma_{i+1} - P_mean)/(sqrt 2 P_std)) - erf((ln sigma_i - P_mean)/(sqrt 2 P_std))."""
    objective = ConsistencyTraining(setup_of(), s0=10, s1=20, schedule_steps=100)
    for step, points in ((0, 11), (99, 21)):
        batch, tiny = draw(objective, range(4000), step=step), objective.networks["student"]
        grid = grid_of(tiny, points).t.numpy()
        index = {t: n for n, t in enumerate(grid)}
        n = np.array([index[t] for t in batch["t"].tolist()])
        assert np.array_equal(grid[n + 1], batch["u"].numpy()) and tiny.t_max == grid[0]
        Phi = lambda t: math.erf((math.log(t) + 1.1) / (math.sqrt(2) * 2.0))
        p = np.array([Phi(grid[k]) - Phi(grid[k + 1]) for k in range(points - 1)])
        counts = np.bincount(n, minlength=points - 1) / 4000
        assert np.abs(counts - p / p.sum()).max() < 5 * math.sqrt(0.25 / 4000)
        np.testing.assert_allclose(weigh_intervals(grid, -1.1, 2.0), p / p.sum(), rtol=1e-12)


def test_the_schedule_has_the_run_s_steps_unless_it_says():
    for options, expected in (({}, 70), ({"schedule_steps": 30}, 30)):
        config = load_config(DistillConfig, "default", {"out": "x", "train.steps": 70,
                                                        "objective": {"name": "consistency_training", **options}})
        assert next(iter(list_stages(config).values())).objective["schedule_steps"] == expected


def test_the_teacher_is_not_asked():
    def fail(x, t, labels=None):
        raise AssertionError

    teacher = FunctionDenoiser(fail, SHAPE, 3)
    student = make_student(teacher, "random", MLP, form="consistency")
    objective = ConsistencyTraining(Setup(student, teacher, grid_of(teacher, POINTS), IMAGES))
    check_contract(objective)
    assert bool(objective.loss(draw(objective, range(3))).isfinite().all())


# Options -------------------------------------------------------------------------------------------------------------------


def test_options_change_the_loss_or_the_times():
    plain = ConsistencyTraining(setup_of())
    batch = draw(plain, range(4))
    torch.testing.assert_close(ConsistencyTraining(setup_of(), weighting="none").loss(batch),
                               plain.loss(batch) * (batch["t"] - batch["u"]).float())
    assert not torch.allclose(ConsistencyTraining(setup_of(), distance="l2").loss(batch), plain.loss(batch), rtol=1e-3)
    times = lambda **options: draw(ConsistencyTraining(setup_of(), **options), range(300))["t"]
    assert times(p_mean=1.0).log().mean() > times().log().mean() + 1
    assert times(p_std=0.5).log().std() < times().log().std() - 0.5
    assert len(times(s0=3).unique()) == 3
    assert set(times(schedule="fixed").tolist()) <= set(grid_of(plain.networks["student"], POINTS).t.tolist())
    mirrored = draw(ConsistencyTraining(setup_of(), flip=True), range(50))["y"]
    assert not torch.equal(mirrored, draw(plain, range(50))["y"])


# Refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, said", [
    ({"p_std": 0.0}, r"objective\.p_std must be above 0, got 0"),
    ({"s0": 0}, r"objective\.s0 must be at least 1, s1 at least s0 and schedule_steps at least 1, got 0, 1280 and"),
    ({"s1": 5}, "got 10, 5 and"), ({"schedule_steps": 0}, "and 0"),
    ({"p_mean": 90.0, "p_std": 0.1}, r"objective\.p_mean=90 and p_std=0\.1 leave no noise level from 0\.002 to 80")])
def test_wrong_options_are_one_line(options, said):
    with pytest.raises(PidistillError, match=said) as raised:
        ConsistencyTraining(setup_of(), **options)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_trained_is_one_line():
    with pytest.raises(PidistillError, match="of the form consistency; the student's form is direct"):
        ConsistencyTraining(setup_of("direct"))
    with pytest.raises(PidistillError, match="the objective consistency_training needs images"):
        ConsistencyTraining(setup_of(data=None))
