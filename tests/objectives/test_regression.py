"""Draws of data, and what is refused, of the objectives that fit a denoiser to targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.student_init import make_student
from pidistill.objectives._regression import draw_pair
from pidistill.objectives.base import Setup
from pidistill.objectives.distances.base import make_distance
from pidistill.objectives.knowledge import Knowledge
from pidistill.objectives.progressive import Progressive
from pidistill.objectives.rectified_flow import RectifiedFlow
from tests.helpers import CLASSES, SHAPE, grid_of, tiny_teacher
from tests.pairs import Held, solve_pairs


def test_every_pair_is_drawn_alike():
    pairs, rng = Held(y=torch.arange(4.0)[:, None], z=-torch.arange(4.0)[:, None]), np.random.default_rng(0)
    drawn = [draw_pair(pairs, rng, 0) for _ in range(400)]
    assert all(pair["z"] == -pair["y"] for pair in drawn)
    assert np.unique([pair["y"] for pair in drawn], return_counts=True)[1].min() > 70


def test_labels_are_the_teacher_s_to_ask_for_and_states_are_nobody_s():
    pairs = Held(y=torch.zeros(4, 2), z=torch.zeros(4, 2), labels=torch.arange(4), states=torch.zeros(4, 3, 2))
    assert draw_pair(pairs, np.random.default_rng(0), 0).keys() == {"z", "y"}
    assert draw_pair(pairs, np.random.default_rng(0), 4).keys() == {"z", "y", "labels"}


def test_a_distance_that_does_not_suit_is_refused():
    with pytest.raises(PidistillError, match=r"'digits_perceptual' are of images of shape .* these have \(1, 3, 3\)"):
        make_distance({"name": "features", "net": "digits_perceptual", "size": None}, (1, 3, 3))


@pytest.mark.parametrize("member", [Knowledge, Progressive, RectifiedFlow])
def test_only_a_denoiser_is_trained(member):
    teacher = tiny_teacher()
    with pytest.raises(PidistillError, match=r"trains a denoiser; the student's form is trajectory"):
        member(Setup(make_student(teacher), teacher, grid_of(teacher, 10), Held(y=torch.zeros(2, *SHAPE))))


@pytest.mark.parametrize("member, words", [(Knowledge, "needs pairs"), (Progressive, "needs images"),
                                           (RectifiedFlow, "needs pairs")])
def test_without_data_there_is_nothing_to_learn(member, words):
    teacher = tiny_teacher()
    student = make_student(teacher, **member.plan_student(teacher, {}, None))
    with pytest.raises(PidistillError, match=words):
        member(Setup(student, teacher, grid_of(teacher, 10)))


def test_pairs_are_those_of_the_teacher():
    """The helper that other tests lean on."""
    teacher = tiny_teacher()
    pairs = solve_pairs(teacher, 3, 0, steps=4)
    assert pairs.sample(1).keys() == {"z", "y", "labels"} and pairs.sample(1)["z"].std() > 40
    assert pairs.shape == SHAPE and pairs.num_classes <= CLASSES
