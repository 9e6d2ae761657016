"""The numbers of an evaluation, on models whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.evaluation.evaluate import evaluate
from pidistill.evaluation.measure import Measure
from pidistill.jobs.evaluate_run import pick_features
from pidistill.models.samplers.base import STEPS, sample_teacher
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP, tiny_teacher


def test_counts_calls_and_measures_the_distance():
    teacher = tiny_teacher()
    student = make_student(teacher).eval()
    results = evaluate(teacher, student, num=7, batch=3, first_seed=40).record()
    assert results["teacher"]["nfe"] == 2 * STEPS - 1 == 35 and results["student"]["nfe"] == 1
    seeds = range(40, 47)
    y = labels_of(seeds, 3)
    difference = student.sample(seeds, y, clip=False) - sample_teacher(teacher, seeds, y)
    assert results["student"]["trajectory_rmse"] == pytest.approx(math.sqrt(difference.square().mean()), rel=1e-4)
    ratio = results["student"]["images_per_s"] / results["teacher"]["images_per_s"]
    assert results["speedup"] == pytest.approx(ratio)


def test_a_teacher_or_a_student_alone():
    teacher = gaussian("2")
    assert set(evaluate(teacher, None, num=4).record()) == {"teacher"}
    row = evaluate(None, make_student(teacher, "random", MLP).eval(), num=4).record()["student"]
    assert {"nfe", "images_per_s", "seconds", "weights", "seeds"} <= set(row) and not {"fd", "trajectory_rmse"} & set(row)


def test_fd_needs_digits_and_finite_images():
    with pytest.raises(PidistillError, match=r"images of shape \(1, 16, 16\)"):
        evaluate(tiny_teacher(), None, num=4, features="digits")
    images = torch.zeros(3, 1, 16, 16)
    images[1, 0, 0, 0] = math.nan
    measure = Measure("digits", None, (1, 16, 16))
    with pytest.raises(PidistillError, match="1 images are not finite; the first is number 1"):
        measure(images)
    with pytest.raises(PidistillError, match="the first is that of seed 71"):
        measure.start(3).add(images, range(3), range(70, 73))


def test_fd_tells_digits_from_grey():
    flat = evaluate(gaussian("1x16x16,std=0.1"), None, num=40, batch=20, features="digits", steps=2).record()
    assert flat["teacher"]["fd"] > 50 and flat["teacher"]["nfe"] == 3


def test_auto_means_digits_for_the_bundled_digits_alone():
    assert pick_features("auto", "bundled:digits", None) == "digits" and pick_features("auto", "gaussian:2", None) is None
    assert pick_features("auto", "runs/x", "bundled:digits") == "digits"
    assert pick_features("none", "bundled:digits") is None and pick_features("digits", "x") == "digits"
