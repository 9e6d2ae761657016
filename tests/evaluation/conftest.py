"""A teacher whose images the bundled features take, and a student of it with random weights."""

from __future__ import annotations

import pytest
import torch

from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP


@pytest.fixture
def teacher():
    return gaussian("1x16x16,mean=-0.5,std=0.4")


@pytest.fixture
def student(teacher):
    torch.manual_seed(0)
    return make_student(teacher, "random", MLP).eval()
