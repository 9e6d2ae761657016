"""Draws of data, and what is refused, of the objectives that fit a denoiser to targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.student_init import make_student
from pidistill.objectives._regression import draw_data, make_distance
from pidistill.objectives.base import Setup
from pidistill.objectives.knowledge import Knowledge
from pidistill.objectives.progressive import Progressive
from pidistill.objectives.rectified_flow import RectifiedFlow
from tests.helpers import CLASSES, SHAPE, grid_of, tiny_teacher
from tests.pairs import Held, solve_pairs


def test_every_datum_is_drawn_alike_and_every_other_is_mirrored():
    data, rng = Held(y=torch.arange(4.0).reshape(4, 1, 1, 1) + torch.tensor([0.0, 0.5])), np.random.default_rng(0)
    drawn = np.stack([draw_data(data, rng, 0, flip=True)["y"].ravel() for _ in range(800)])
    counts = [((drawn.min(axis=1) == k) & ((drawn[:, 0] > drawn[:, 1]) == flip)).sum() for k in range(4)
              for flip in (False, True)]
    assert min(counts) > 70 and sum(counts) == 800
    assert not any(np.diff(draw_data(data, rng, 0)["y"].ravel()) < 0 for _ in range(20))


def test_labels_are_the_teacher_s_to_ask_for():
    data = Held(y=torch.zeros(4, 2), labels=torch.arange(4))
    assert draw_data(data, np.random.default_rng(0), 0).keys() == {"y"}
    assert draw_data(data, np.random.default_rng(0), 4).keys() == {"y", "labels"}


def test_a_distance_that_does_not_suit_is_refused():
    with pytest.raises(PidistillError, match=r"'digits_perceptual' are of images of shape .* these have \(1, 3, 3\)"):
        make_distance({"name": "features", "net": "digits_perceptual", "size": None}, (1, 3, 3))


@pytest.mark.parametrize("member", [Knowledge, Progressive, RectifiedFlow])
def test_only_a_denoiser_is_trained(member):
    teacher = tiny_teacher()
    with pytest.raises(PidistillError, match=r"trains a denoiser; the student's form is trajectory"):
        member(Setup(make_student(teacher), teacher, grid_of(teacher, 10), Held(y=torch.zeros(2, *SHAPE))))


def test_pairs_are_those_of_the_teacher():
    """The helper that other tests lean on."""
    teacher = tiny_teacher()
    pairs = solve_pairs(teacher, 3, 0, steps=4)
    assert pairs.sample(1).keys() == {"z", "y", "labels"} and pairs.sample(1)["z"].std() > 40
    assert pairs.shape == SHAPE and pairs.num_classes <= CLASSES
