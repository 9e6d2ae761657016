"""The paper's experiments, at a scale of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pidistill.core.errors import PidistillError
from pidistill.jobs import reproduce
from pidistill.jobs.distill import Distillation
from pidistill.jobs.experiments import CURVES, EXPERIMENTS, SCALES, plan_runs
from pidistill.training.config_file import find_differences
from pidistill.training.log import read_metrics
from tests.names import NAMES

SMALL = ["train.steps=4", "train.batch=4", "evaluate.every=2", "evaluate.num=20", "checkpoint.every=2", "preview.seeds=0-1",
         "objective.distance=pseudo_huber"]


@pytest.mark.parametrize("scale", ["bundled", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_differs_from_the_preset_in_what_its_name_says(name, scale, tmp_path):
    """Every configuration is valid, and the keys that differ from the base run are those of the table."""
    base = {run.curve: run for run in plan_runs(EXPERIMENTS["table3"], SCALES[scale], tmp_path)}["base"]
    for run in plan_runs(EXPERIMENTS[name], SCALES[scale], tmp_path):
        changed = set(find_differences(base.config.model_dump(mode="json"), run.config)) - {"train.seed", "train.steps"}
        expected = set(CURVES[run.curve].overrides)
        assert {key for key in changed if not any(key.startswith(e) for e in expected)} == set()
        assert all(any(key.startswith(e) for key in changed) for e in expected), run.curve


@pytest.mark.parametrize("name", NAMES)
def test_results_lie_where_the_user_says(name):
    scale = SCALES["bundled"]
    for run in plan_runs(EXPERIMENTS["figure8"], scale, Path(name), overrides=[f"data={json.dumps(name)}"]):
        assert run.config.out == str(Path(name) / "curves" / f"{run.curve}-seed{run.seed}")
        assert run.config.data == name  # although JSON writes characters in halves that YAML knows as two


def test_what_the_user_sets_comes_before_the_paper_s_steps(tmp_path):
    steps = {run.config.train.steps for overrides in ([], ["train.steps=7"]) for run in plan_runs(
        EXPERIMENTS["figure4"], SCALES["paper"], tmp_path, overrides=overrides)}
    assert steps == {800_000, 200_000, 7}


def test_paper_scale_measures_fid_and_says_its_cost(tmp_path):
    planned = plan_runs(EXPERIMENTS["figure8"], SCALES["paper"], tmp_path)
    assert [(run.config.evaluate.features, run.config.evaluate.reference, run.config.evaluate.num) for run in planned] == [
        ("inception", "cifar10-32x32", 50_000)]
    *_, cost = reproduce.estimate_cost(["figure8"], "paper", tmp_path)
    hours = 389.1e9 * 512 * 800_000 / 35e12 / 3600  # operations a sample by the dry run, at its rate
    assert cost.startswith(f"about {hours:,.0f}"[:9]) and "8 GPUs" in cost


def test_finished_runs_are_not_trained_again_and_stopped_ones_go_on(tmp_path, monkeypatch):
    experiment, scale = EXPERIMENTS["table3"], SCALES["bundled"]
    trained = []
    train = Distillation.train
    monkeypatch.setattr(Distillation, "train",
                        lambda self, folder, *rest: (trained.append(folder), train(self, folder, *rest))[1])
    reproduce.reproduce("figure8", "bundled", tmp_path, seeds=1, overrides=SMALL)
    assert len(trained) == 1
    folder = tmp_path / "curves" / "base-seed0"
    before = read_metrics(folder)
    (folder / "student" / "config.json").unlink()  # as if it had been stopped before the end
    trained.clear()
    reproduce.reproduce("table3", "bundled", tmp_path, seeds=1, overrides=SMALL)
    assert len(trained) == 3 and all(run.done for run in plan_runs(experiment, scale, tmp_path, 1, SMALL))
    assert [r["step"] for r in read_metrics(folder)] == [r["step"] for r in before]  # continued, no line doubled
    trained.clear()
    reproduce.reproduce("table3", "bundled", tmp_path, seeds=1, overrides=SMALL)
    assert trained == []


def test_runs_of_other_settings_are_not_mixed_in(tmp_path):
    reproduce.reproduce("figure8", "bundled", tmp_path, seeds=1, overrides=SMALL)
    with pytest.raises(PidistillError, match=r"optimizer\.lr"):
        reproduce.reproduce("figure8", "bundled", tmp_path, seeds=1, overrides=[*SMALL, "optimizer.lr=1e-3"])


def test_results_may_be_moved(tmp_path):
    reproduce.reproduce("figure8", "bundled", tmp_path / "a", seeds=1, overrides=SMALL)
    (tmp_path / "a").rename(tmp_path / "b")
    assert reproduce.reproduce("figure8", "bundled", tmp_path / "b", seeds=1, overrides=SMALL)


def test_plan_says_what_is_there_and_what_it_costs(tmp_path):
    lines = reproduce.estimate_cost(["table3", "figure8"], "bundled", tmp_path, seeds=1, overrides=SMALL)
    assert lines[-1].startswith("3 of 3 runs to train, 12 steps")
    reproduce.reproduce("figure8", "bundled", tmp_path, seeds=1, overrides=SMALL)
    lines = reproduce.estimate_cost(["table3"], "bundled", tmp_path, seeds=1, overrides=SMALL)
    assert lines[-1].startswith("2 of 3 runs to train, 8 steps") and sum(line.startswith("done") for line in lines) == 1


def test_unknown_names_are_one_line(command, tmp_path):
    assert "did you mean 'table3'" in command("reproduce", "table33").error()
    assert "bundled, paper" in command("reproduce", "table3", "--scale", "huge").error()
    assert "unknown" in command("reproduce", "table3", "--plan", "--set", "tain.steps=3").error()
