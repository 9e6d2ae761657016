"""A distillation that is ready to be run: what it refuses, what it saves, how it is measured, and its previews."""

from __future__ import annotations

import time

import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.jobs.distillation import PICTURE, Distillation, Preview, select_students
from pidistill.models.samplers import base as samplers
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.trainer import exhaust
from tests.helpers import MLP, tiny_teacher

SPEC = "gaussian:2,modes=4,std=0.1"


def make_job(folder, **values) -> Distillation:
    options = {"teacher": SPEC, "student": {"init": "random", "net": MLP}, "grid.points": 10, "train.steps": 3,
               "train.batch": 4, "ema": [0.5, 0.0], "evaluate.num": 16, "out": str(folder)}
    return Distillation(load_config(DistillConfig, "default", options | values), load_teacher(SPEC))


@pytest.mark.parametrize("changes, words", [
    ({"evaluate.every": None}, "evaluate.every, which is not set"),
    ({"evaluate.keep_best": "trajectory_rms"}, "did you mean"),
    ({"evaluate.keep_best": "fd"}, "choices: trajectory_rmse")])
def test_what_cannot_choose_is_one_line(tmp_path, changes, words):
    with pytest.raises(PidistillError, match=words):
        make_job(tmp_path, **{"evaluate": {"every": 1, "num": 64, "keep_best": "trajectory_rmse"}} | changes)


def test_it_trains_saves_and_measures_a_student_for_every_average(tmp_path):
    job = make_job(tmp_path)
    students = exhaust(job.train_in_steps(tmp_path))
    assert [*students] == [0.5, 0.0] and job.steps == 3
    for rate, student in students.items():
        assert torch.equal(load_student(tmp_path, ema=rate).sample(range(4)), student.sample(range(4)))
    other = make_student(job.teacher, "random", MLP).eval()
    result = job.evaluate(tmp_path, students, time.perf_counter() - 5, {"student after 1-pid": other})
    record = read_json(tmp_path / "results.json")
    assert [*result.evaluation.models] == ["teacher", "student after 1-pid", "student", "student, EMA 0.0"]
    assert (record["ema"], record["seeds"], record["steps"]) == ([0.5, 0.0], "0-15", 3) and record["seconds"] >= 5
    errors = [record[name]["trajectory_rmse"] for name in result.evaluation.models if name != "teacher"]
    assert len({*errors}) == 3 and all(error > 0 for error in errors)


def test_a_preview_asks_the_teacher_once_and_is_also_the_runs_picture(tmp_path, monkeypatch):
    teacher, asked = tiny_teacher().eval(), []
    student = make_student(teacher, "teacher").eval()
    draw = samplers.sample_teacher
    monkeypatch.setattr("pidistill.jobs.distillation.sample_teacher", lambda *given: asked.append(given) or draw(*given))
    preview = Preview(teacher, [3, 4])
    for step in (5, 10):
        preview({0.5: {"student": student, "fake": teacher}}, step, tmp_path)
    first, second = (Image.open(tmp_path / "samples" / f"{step:06d}.png") for step in (5, 10))
    assert len(asked) == 1 and first.size == second.size
    assert (tmp_path / PICTURE).read_bytes() == (tmp_path / "samples" / "000010.png").read_bytes()
    assert select_students({0.5: {"student": student}, 0.9: {"student": teacher}}) == {0.5: student}
