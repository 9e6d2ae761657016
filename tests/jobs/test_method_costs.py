"""Table 1 at a scale of seconds: what methods need, and what they cost."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pidistill.jobs import experiments, reproduce
from pidistill.jobs.experiments import EXPERIMENTS, METHODS, find_experiment, plan_runs
from pidistill.jobs.method_costs import describe_needs, list_places
from pidistill.objectives.base import find_objective
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config

SMALL = ["train.steps=2", "train.batch=4", "evaluate.num=20", "preview.seeds=0-1", "pairs.num=6", "pairs.sampler=heun:2",
         "log.every=1"]
NEEDS = {"method-pid": "nothing", "method-corrected": "nothing", "method-knowledge": "pairs", "method-progressive": "data",
         "method-consistency": "data", "method-consistency_training": "data", "method-ctm": "data", "method-boot": "nothing",
         "method-rectified_flow": "pairs", "method-dsno": "trajectories", "method-diff_instruct": "nothing",
         "method-sid": "the teacher's gradient", "method-equilibrium": "pairs"}


@pytest.mark.parametrize("scale", ["bundled", "paper"])
def test_every_method_has_a_preset_and_needs_what_its_paper_says(scale, tmp_path):
    experiment, scale = find_experiment("table1", scale)
    assert experiment.paper.keys() == METHODS.keys() == NEEDS.keys()
    for run in plan_runs(experiment, scale, tmp_path, seeds=1):
        stages = find_objective(run.config.objective["name"]).stages(run.config)
        assert describe_needs(stages) == NEEDS[run.curve], run.curve
        assert run.config.train.seed == 0 and run.config.out == str(run.folder)


def test_samples_of_the_teacher_s_are_no_data():
    config = load_config(DistillConfig, "digits_consistency", {"data": "teacher"})
    assert describe_needs([config]) == "the teacher's samples"
    options = {"name": "pid_corrected", "correction": "score_identity"}
    corrected = load_config(DistillConfig, "digits", {"objective": options})
    assert describe_needs([corrected]) == "the teacher's gradient"


@pytest.mark.parametrize("chosen", [
    ("method-knowledge",), pytest.param(("method-pid", "method-knowledge", "method-progressive"), marks=pytest.mark.slow)])
def test_the_table_of_methods(chosen, tmp_path, monkeypatch):
    """Pairs and all stages count."""
    whole = EXPERIMENTS["table1"]
    experiment = dataclasses.replace(whole, paper={name: whole.paper[name] for name in chosen})
    monkeypatch.setitem(experiments.EXPERIMENTS, "table1", experiment)
    options = {"seeds": 1, "overrides": SMALL}
    paths = reproduce.reproduce("table1", "bundled", tmp_path, **options)
    assert [path.name for path in paths] == ["table1.md", "table1.json"] and (tmp_path / "table1-samples.png").exists()
    curves = json.loads(paths[1].read_text())["curves"]
    costs = {name: curve["runs"][0]["costs"] for name, curve in curves.items()}
    stages = {name: 5 if name == "method-progressive" else 1 for name in chosen}
    assert {name: cost["steps"] for name, cost in costs.items()} == {name: [2] * n for name, n in stages.items()}
    assert {name: cost["pairs_seconds"] > 0 for name, cost in costs.items()} == {
        name: name == "method-knowledge" for name in chosen}
    assert all(cost["seconds"] > 0 and cost["ten_steps"] > 0 and cost["memory"] > 10**6 for cost in costs.values())
    runs = plan_runs(*find_experiment("table1", "bundled"), tmp_path, **options)
    assert [len(list_places(run)) for run in runs] == [*stages.values()] and all(run.done for run in runs)
    assert all({"fd", "recall", "trajectory_rmse"} <= curve["runs"][0]["student"].keys() for curve in curves.values())
    text = paths[0].read_text()
    assert "| Knowledge Distillation | pairs | - |" in text and "the preset of each method" in text
    assert ("| PID | nothing | 3.92 |" in text and "2 + 2 + 2 + 2 + 2" in text) == (len(chosen) > 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("curves/**/model.safetensors")}
    reproduce.reproduce("table1", "bundled", tmp_path, **options)  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("curves/**/model.safetensors")} == before
