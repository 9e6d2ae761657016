"""States along the way, student beside teacher."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.jobs.trajectory import compute_trajectories
from pidistill.models.grid import karras_times
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP


def test_states_at_the_times_of_the_grid():
    teacher = gaussian("1x4x4,mean=0.2,std=0.5")
    student = make_student(teacher, "random", MLP).eval()
    ts, ours, theirs = compute_trajectories(student, teacher, [3, 4], None, columns=10, substeps=20)
    torch.testing.assert_close(ts, karras_times(10, 0.002, 80.0, 7.0))
    assert ours.shape == theirs.shape == (10, 2, 1, 4, 4)
    assert torch.equal(ours[0], theirs[0])  # both start at z
    for t, x in zip(ts.tolist(), theirs):
        torch.testing.assert_close(x, teacher.exact(theirs[0], t), rtol=1e-3, atol=5e-3)
    torch.testing.assert_close(ours[-1], student.sample([3, 4], clip=False), rtol=0, atol=1e-5)


def test_a_student_without_trajectories_is_refused_before_the_teacher_is_asked(monkeypatch):
    teacher = gaussian("1x4x4,mean=0.2,std=0.5")
    student = make_student(teacher, "random", MLP, form="consistency").eval()
    monkeypatch.setattr(type(teacher), "denoise", lambda *_: pytest.fail("the teacher was asked"))
    with pytest.raises(PidistillError, match="a student of the form consistency has no trajectory"):
        compute_trajectories(student, teacher, [3, 4], None, columns=10)
