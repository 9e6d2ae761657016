"""Distillations in stages: which runs, in which folders, and what is measured of each."""

from __future__ import annotations

import sys

import pytest
import torch

import pidistill
from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.jobs.distill import resume_distillation
from pidistill.jobs.stages import is_stage, list_stages, start_anew
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config

SPEC = "gaussian:2,modes=4,std=0.1"
QUICK = {"student.init": "random", "student.net": {"name": "mlp", "width": 8, "depth": 1}, "train.steps": 3,
         "train.batch": 4, "evaluate.num": 4, "grid.points": 10, "checkpoint.every": 2}
STAGES = """
from pidistill.objectives.pid import PID

class Twice(PID):
    @classmethod
    def stages(cls, config):
        student = config.student.model_copy(update={"init": "previous"})
        return [config.model_copy(update={"objective": {"name": "pid"}}),
                config.model_copy(update={"objective": {"name": "pid", "distance": "l1"}, "student": student})]
"""


@pytest.fixture
def twice(tmp_path, monkeypatch):
    """Settings of a distillation of two runs, by an objective of the user's own."""
    (tmp_path / "pidistill_twice.py").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    yield QUICK | {"objective": "python:pidistill_twice:Twice"}
    sys.modules.pop("pidistill_twice", None)


def weights(student) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in student.parameters()])


def test_a_distillation_of_two_runs(tmp_path, twice):
    """The second starts from the student of the first, with its network; the last student is the distillation's."""
    steps = [(step.folder.name, step.number) for step in pidistill.steps(SPEC, out=tmp_path / "a", overrides=twice)]
    assert steps == [(name, number) for name in ("1-pid", "2-pid") for number in (1, 2, 3)]
    first = pidistill.distill(SPEC, out=tmp_path / "b", overrides=twice | {"objective": "pid"})
    second = pidistill.distill(SPEC, out=tmp_path / "c", overrides=QUICK | {
        "objective.distance": "l1", "train.steps": 3, "student.init": str(tmp_path / "b"), "student.net": None})
    assert torch.equal(weights(pidistill.load_student(tmp_path / "a" / "1-pid")), weights(first))
    for name in ("a", "a/2-pid"):
        assert torch.equal(weights(pidistill.load_student(tmp_path / name)), weights(second))
    assert read_json(tmp_path / "a" / "results.json")["steps"] == 3
    with pytest.raises(PidistillError, match=r"1-pid is a stage of the run .*a: resume that one"):
        resume_distillation(tmp_path / "a" / "1-pid")


@pytest.mark.parametrize("stage", ["1-pid", "2-pid"])
def test_a_distillation_of_two_runs_goes_on_where_it_was_left(tmp_path, twice, stage):
    for step in pidistill.steps(SPEC, out=tmp_path / "a", overrides=twice):
        if (step.folder.name, step.number) == (stage, 3):
            break
    again = [(step.folder.name, step.number) for step in
             pidistill.steps(SPEC, out=tmp_path / "a", overrides=twice, resume=True)]
    assert again == {"1-pid": [("1-pid", 3), ("2-pid", 1), ("2-pid", 2), ("2-pid", 3)], "2-pid": [("2-pid", 3)]}[stage]
    whole = pidistill.distill(SPEC, out=tmp_path / "b", overrides=twice)
    assert torch.equal(weights(pidistill.load_student(tmp_path / "a")), weights(whole))


def test_every_stage_s_student_is_measured(tmp_path, twice):
    pidistill.distill(SPEC, out=tmp_path / "a", overrides=twice)
    results = read_json(tmp_path / "a" / "results.json")
    alone = pidistill.distill(SPEC, out=tmp_path / "b", overrides=twice | {"objective": "pid"})
    assert torch.equal(weights(pidistill.load_student(tmp_path / "a" / "1-pid")), weights(alone))
    measured, first = results["student after 1-pid"], read_json(tmp_path / "b" / "results.json")["student"]
    assert measured["trajectory_rmse"] == first["trajectory_rmse"] != results["student"]["trajectory_rmse"]
    assert "student after 2-pid" not in results


def test_a_stage_is_a_numbered_folder_in_a_run(tmp_path, twice):
    stages = list_stages(load_config(DistillConfig, "default", twice | {"teacher": SPEC, "out": str(tmp_path / "a")}))
    assert [stage.out for stage in stages.values()] == [str(tmp_path / "a" / name) for name in ("1-pid", "2-pid")]
    assert [stage.student.init for stage in stages.values()] == ["random", "previous"]
    assert [stage.student.init for stage in start_anew(stages).values()] == ["random", "random"]
    for name in ("1-pid", "02-pid", "pid-1", "1-"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert not is_stage(tmp_path / "a" / "1-pid")  # nothing is around it
    (tmp_path / "a" / "config.yaml").write_text("")
    assert [name for name in ("1-pid", "02-pid", "pid-1", "1-") if is_stage(tmp_path / "a" / name)] == ["1-pid"]
