"""Pictures of a report: which seeds differ most, which image is nearest."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.jobs.report.drawn import SEEDS_SHOWN, draw_all, draw_nearest, draw_worst
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from tests.helpers import tiny_teacher


def test_the_worst_seeds_come_first():
    theirs = torch.zeros(20, 1, 8, 8)
    ours = torch.arange(20.0).flip(0)[:, None, None, None] / 20 + theirs
    drawn = draw_worst(ours, theirs, list(range(100, 120)))
    assert "100, 101, 102" in drawn.alt and "0.95 at most" in drawn.words and drawn.png.startswith(b"\x89PNG")
    assert drawn.alt.count(",") == SEEDS_SHOWN - 1


def test_the_nearest_image_is_found():
    from pidistill.files.datasets import open_images

    data = open_images("digits")
    mine = torch.stack([torch.as_tensor(data.sample(k)["y"]) for k in (7, 4000)])
    assert "A copy would stand at 0" in draw_nearest(mine, "digits").words
    with pytest.raises(PidistillError, match="the student draws"):
        draw_nearest(torch.zeros(2, 3, 8, 8), "digits")


def test_students_without_pictures_have_none():
    vectors = load_teacher("gaussian:2")
    student = make_student(vectors, init="random", net={"name": "mlp"})
    assert draw_all(student, vectors) == []


def test_students_without_a_trajectory_have_the_others():
    teacher = tiny_teacher(classes=0)
    titles = [drawn.title for drawn in draw_all(make_student(teacher, form="consistency"), teacher)]
    assert titles == ["Where student and teacher differ most"]
    titles = [drawn.title for drawn in draw_all(make_student(teacher), teacher)]
    assert titles == ["Where student and teacher differ most", "From noise to image"]
