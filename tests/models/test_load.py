"""Models by the text of the command line: a student's folder, a run, or a teacher spec."""

from __future__ import annotations

import json

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder
from pidistill.models.denoiser import Denoiser
from pidistill.models.load import find_student_folder, load_model, load_pair, read_teacher_spec
from pidistill.models.student import Student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import describe_teacher, load_teacher
from tests.helpers import MLP, SHAPE, tiny_teacher

TEACHER = "gaussian:1x8x8,std=0.3"


@pytest.fixture
def student():
    torch.manual_seed(0)
    return make_student(load_teacher(TEACHER), "random", MLP).eval()


@pytest.fixture
def run(student, tmp_path):
    """A run folder around the student."""
    student.save(tmp_path / "run" / "student", {"teacher": TEACHER})
    return tmp_path / "run"


def record(run, teacher) -> None:
    (run / "student" / "provenance.json").write_text(json.dumps({"teacher": teacher}))


def test_a_student_is_found_in_its_folder_and_in_the_run_around_it(run, tmp_path):
    assert find_student_folder(run) == find_student_folder(run / "student") == run / "student"
    write_folder(tmp_path / "teacher", {"model": tiny_teacher().state_dict()}, {"config": describe_teacher(tiny_teacher())})
    assert find_student_folder(tmp_path / "teacher") is None and find_student_folder(tmp_path / "nowhere") is None


def test_a_model_is_a_student_or_a_teacher(run, student, tmp_path):
    loaded = load_model(str(run))
    assert isinstance(loaded, Student) and torch.equal(loaded.sample(range(3)), student.sample(range(3)))
    assert isinstance(load_model(TEACHER), Denoiser) and load_model(TEACHER).shape == SHAPE
    write_folder(tmp_path / "teacher", {"model": tiny_teacher().state_dict()}, {"config": describe_teacher(tiny_teacher())})
    assert isinstance(load_model(str(tmp_path / "teacher")), Denoiser)


def test_an_ema_rate_chooses_among_a_student_s_averages(student, tmp_path):
    other = make_student(load_teacher(TEACHER), "random", MLP).eval()
    student.save(tmp_path / "s", averages={0.9: student, 0.99: other})
    for rate, expected in ((None, student), (0.9, student), (0.99, other)):
        assert torch.equal(load_model(str(tmp_path / "s"), rate).sample(range(2)), expected.sample(range(2)))
    with pytest.raises(PidistillError, match=r"no average with rate 0.5 \(rates: 0.9, 0.99\)"):
        load_model(str(tmp_path / "s"), 0.5)
    with pytest.raises(PidistillError, match="only a student has averages"):
        load_model(TEACHER, 0.9)


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "file.npz").write_bytes(b"")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("")
    for path, words in (("file.npz", "is a file; a model is a folder"), ("begun", "continue it with `pidistill resume"),
                        ("nowhere", "does not exist, and is no teacher such as bundled:digits")):
        with pytest.raises(PidistillError, match=words) as error:
            load_model(str(tmp_path / path))
        assert "\n" not in str(error.value)


def test_a_pair_is_a_student_and_the_teacher_that_it_had(run):
    student, teacher = load_pair(str(run))
    assert isinstance(student, Student) and teacher.spec == TEACHER == read_teacher_spec(str(run))
    assert load_pair(str(run), "gaussian:1x8x8,std=0.5")[1].sigma_data == pytest.approx(0.5)  # the one that is named


@pytest.mark.parametrize("recorded, named, words", [
    ("python:teachers:make", None, "which is code; if you trust it, say --teacher python:teachers:make"),
    (None, None, "does not say which teacher it had; name it with --teacher"), (["x"], None, "does not say which"),
    (TEACHER, "gaussian:1x4x4", r"gives \(1, 4, 4\) in 0 classes, the student \(1, 8, 8\) in 0")])
def test_a_pair_that_does_not_fit_or_may_not_run_is_refused(run, recorded, named, words):
    record(run, recorded)
    with pytest.raises(PidistillError, match=words):
        load_pair(str(run), named)


def test_a_teacher_is_no_student():
    with pytest.raises(PidistillError, match="is a teacher; a student was expected"):
        load_pair(TEACHER)
    assert read_teacher_spec(TEACHER) is None
