"""The Python entry points, with a teacher that is the user's own object."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pidistill
from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.jobs.distill import default_preset, resume_distillation
from pidistill.training.checkpoint import list_checkpoints
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.trainer import StepTaken
from tests.helpers import tiny_teacher
from tests.runs import loop

QUICK = {"student.init": "random", "student.net": {"name": "mlp", "width": 8, "depth": 1}, "train.steps": 2,
         "train.batch": 4, "evaluate.num": 4, "grid.points": 10}


class Own(nn.Module):
    """D = x/2 for images, with dropout that must not act while it teaches."""

    shape, num_classes, t_min, t_max, sigma_data = (1, 4, 4), 0, 0.01, 20.0, 0.5

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.modes = set()

    def forward(self, x, t, labels=None):
        self.modes.add(self.training)
        return x / 2


def test_public_names():
    for name in pidistill.__all__:
        assert getattr(pidistill, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        pidistill.distil  # noqa: B018


def test_an_object_can_teach(tmp_path):
    teacher = Own()
    student = pidistill.distill(teacher, out=tmp_path / "run", overrides=QUICK)
    assert (student.t_min, student.t_max, student.shape) == (0.01, 20.0, (1, 4, 4))
    assert student.sample([0, 1, 2]).shape == (3, 1, 4, 4)
    again = pidistill.load_student(tmp_path / "run").sample([0, 1, 2])
    assert torch.equal(student.sample([0, 1, 2]), again)
    assert teacher.modes == {False}  # dropout and batch statistics of a teacher do not act


def test_a_run_does_not_claim_another_teacher_than_it_had(tmp_path):
    """An object has no spec: neither provenance nor a resumed run may fall back to the bundled teacher."""
    pidistill.distill(Own(), out=tmp_path / "run", overrides=QUICK)
    assert "bundled" not in str(read_json(tmp_path / "run" / "student" / "provenance.json")["teacher"])
    assert load_config(DistillConfig, tmp_path / "run" / "config.yaml").teacher != "bundled:digits"
    with pytest.raises(PidistillError) as caught:
        resume_distillation(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_student_starts_from_an_objects_network(tmp_path):
    """With a learning rate near 0 the student is the teacher's network."""
    teacher = tiny_teacher()
    student = pidistill.distill(teacher, out=tmp_path / "run", overrides={
        "train.steps": 1, "train.batch": 2, "evaluate.num": 2, "grid.points": 5, "optimizer.lr": 1e-12})
    for p, q in zip(student.net.parameters(), teacher.model.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_refusals_are_one_line(tmp_path):
    with pytest.raises(PidistillError, match="is no teacher"):
        pidistill.distill(lambda x: x, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert default_preset("bundled:digits") == "digits" and default_preset("gaussian:2") == "default"


def test_a_loaded_teacher_keeps_its_spec(tmp_path):
    """Handed over as an object, it is still known by name to provenance, evaluate and resume."""
    spec = "gaussian:2,modes=4,std=0.1"
    pidistill.distill(pidistill.load_teacher(spec), out=tmp_path / "run", overrides=QUICK)
    assert read_json(tmp_path / "run" / "student" / "provenance.json")["teacher"] == spec


# a loop over the steps -----------------------------------------------------------------------------------------------------

SPEC = "gaussian:2,modes=4,std=0.1"
LONGER = {**QUICK, "train.steps": 5, "checkpoint.every": 2}


def weights(student) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in student.parameters()])


def test_the_steps_of_a_distillation_end_with_its_student(tmp_path):
    seen = []
    student = loop(pidistill.steps(SPEC, out=tmp_path / "a", overrides=LONGER), seen.append)
    assert all(isinstance(step, StepTaken) and step.folder == tmp_path / "a" for step in seen)
    assert [step.number for step in seen] == [1, 2, 3, 4, 5] and [step.last for step in seen] == [False] * 4 + [True]
    assert all(step.losses["pid"] > 0 for step in seen)
    whole = pidistill.distill(SPEC, out=tmp_path / "b", overrides=LONGER)
    assert isinstance(student, pidistill.Student) and torch.equal(weights(student), weights(whole))
    for name in "ab":
        assert read_json(tmp_path / name / "results.json")["steps"] == 5


def test_a_distillation_that_a_step_ends_is_saved_and_measured(tmp_path):
    """With the number of steps that it took; and it can go on to the end that it was to have."""
    average = []

    def look(step):
        if step.number == 3:
            average.append(weights(step.average()).clone())
            step.stop()

    student = loop(pidistill.steps(SPEC, out=tmp_path / "a", overrides=LONGER), look)
    assert torch.equal(weights(student), average[0])
    assert read_json(tmp_path / "a" / "student" / "provenance.json")["steps"] == 3
    results = read_json(tmp_path / "a" / "results.json")
    assert results["steps"] == 3 and results["student"]["trajectory_rmse"] > 0
    assert [path.name for path in list_checkpoints(tmp_path / "a" / "checkpoints")] == ["000002", "000003"]
    again = pidistill.distill(SPEC, out=tmp_path / "a", overrides=LONGER, resume=True)
    whole = pidistill.distill(SPEC, out=tmp_path / "b", overrides=LONGER)
    assert torch.equal(weights(again), weights(whole)) and read_json(tmp_path / "a" / "results.json")["steps"] == 5


def test_a_distillation_that_is_left_can_go_on(tmp_path):
    """Its folder is free again, and holds neither student nor results."""
    for step in pidistill.steps(SPEC, out=tmp_path / "a", overrides=LONGER):
        if step.number == 4:
            break
    assert not any((tmp_path / "a" / name).exists() for name in ("student", "results.json", ".lock.json"))
    again = pidistill.distill(SPEC, out=tmp_path / "a", overrides=LONGER, resume=True)
    whole = pidistill.distill(SPEC, out=tmp_path / "b", overrides=LONGER)
    assert torch.equal(weights(again), weights(whole))
