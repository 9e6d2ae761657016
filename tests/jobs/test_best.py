"""`evaluate.keep_best`: the best student by a metric on seeds of its own is kept, and is the student."""

from __future__ import annotations

import json

import pytest
import torch

from pidistill.files.reading import read_json
from pidistill.jobs.best import FIRST_SEED, BestStudent
from pidistill.jobs.distill import distil_in_steps, resume_distillation, run_distillation
from pidistill.models.student import load_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.helpers import MLP, Result
from tests.runs import metrics


def configure(folder, **values) -> DistillConfig:
    """A run whose rate is far too high, so that its last student is not its best."""
    options = {"teacher": "gaussian:2,modes=4,std=0.1", "student": {"init": "random", "net": MLP}, "grid.points": 10,
               "train.steps": 8, "train.batch": 16, "checkpoint.every": 3, "ema": [0.0, 0.5], "optimizer.lr": 0.5,
               "evaluate": {"every": 1, "num": 64, "keep_best": "trajectory_rmse"}, "preview.every": 100, "out": str(folder)}
    return load_config(DistillConfig, "default", options | values)


def values(folder) -> dict[tuple[int, float], float]:
    """What the run's lines say of every student, by step and rate."""
    return {(line["step"], float(key.partition("@")[2] or 0)): value for line in metrics(folder)
            for key, value in line.items() if key.startswith("trajectory_rmse")}


def test_the_best_student_of_all_steps_and_rates_is_the_student(tmp_path):
    result = run_distillation(configure(tmp_path))
    measured = values(tmp_path)
    step, rate = min(measured, key=lambda key: measured[key])
    best, record = load_student(tmp_path / "best"), read_json(tmp_path / "best" / "provenance.json")
    assert len(measured) == 16 and (record["steps"], record["ema"], record["value"]) == (step, rate, measured[step, rate])
    assert step < 8, "the last is the best: this shows nothing"
    student = load_student(tmp_path)
    assert torch.equal(student.sample(range(9)), best.sample(range(9)))
    provenance = read_json(tmp_path / "student" / "provenance.json")
    assert (provenance["steps"], provenance["metric"]) == (step, "trajectory_rmse") and [*result.students] == [rate]
    teacher = load_teacher("gaussian:2,modes=4,std=0.1")
    seeds = range(FIRST_SEED, FIRST_SEED + 64)
    from pidistill.models.samplers.base import sample_teacher

    error = (student.sample(seeds, clip=False) - sample_teacher(teacher, seeds)).square().mean().sqrt()
    assert error.item() == pytest.approx(measured[step, rate], rel=1e-4)  # on these seeds; the report has others
    assert json.loads((tmp_path / "results.json").read_text())["student"]["trajectory_rmse"] != measured[step, rate]


def test_a_run_that_was_left_ends_with_the_same_student(tmp_path):
    run_distillation(configure(tmp_path / "a"))
    for step in distil_in_steps(configure(tmp_path / "b")):
        if step.number == 5:  # the newest checkpoint is of step 3
            break
    resume_distillation(tmp_path / "b")
    assert torch.equal(*(load_student(tmp_path / name).sample(range(5)) for name in "ab"))


@pytest.mark.parametrize("key, seen, kept", [
    ("fd", [3.0, 1.0, 2.0], 2), ("recall", [0.3, 0.5, 0.4], 2), ("fd", [1.0, 1.0], 1)])
def test_the_first_of_the_best_is_kept(tmp_path, key, seen, kept):
    student, step = load_student_of(tmp_path), 0

    class Fixed:
        def compare(self, students):
            return {key: seen[step - 1]}

    best = BestStudent(Fixed(), key, {"seed": 0})
    for step in range(1, len(seen) + 1):
        assert best({0.9: student}, step, tmp_path) == {key: seen[step - 1]}
    assert best.read(tmp_path)["steps"] == kept and best.read(tmp_path)["value"] == seen[kept - 1]
    step = 1
    best({0.9: student}, 1, tmp_path)  # of a run that went back to its first step
    assert best.read(tmp_path)["steps"] == 1


def load_student_of(folder):
    from pidistill.models.student_init import make_student

    return make_student(load_teacher("gaussian:2"), "random", MLP).eval()


def test_the_command_says_it(cli, tmp_path):
    options = {"train.steps": 2, "train.batch": 8, "grid.points": 10, "evaluate.num": 16, "evaluate.every": 1,
               "evaluate.keep_best": "trajectory_rmse", "student.init": "random", "student.net": "mlp"}
    flags = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    result: Result = cli("distill", "--teacher", "gaussian:2,modes=4,std=0.1", *flags, "--out", tmp_path / "run")
    assert result.code == 0 and (tmp_path / "run" / "best" / "model.safetensors").exists(), result.err
