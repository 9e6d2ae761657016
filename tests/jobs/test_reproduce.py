"""The paper's experiments, at a scale of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pidistill.core.errors import PidistillError
from pidistill.jobs import reproduce
from pidistill.jobs.distillation import Distillation
from pidistill.jobs.dry_run import estimate_gpu_hours
from pidistill.jobs.experiments import CORRECTION_SCALES, CURVES, EXPERIMENTS, SCALES, find_experiment, plan_runs
from pidistill.objectives.pid_corrected import PIDCorrected
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import find_differences, load_config
from pidistill.training.log import read_metrics
from tests.names import NAMES

SMALL = ["train.steps=4", "train.batch=4", "evaluate.every=2", "evaluate.num=20", "checkpoint.every=2", "preview.seeds=0-1",
         "objective.distance=pseudo_huber"]


# The preset of the correction trains in stages, each with steps of its own.
SMALL_STAGES = [*SMALL, "objective.first.train.steps=2", "objective.first.train.batch=4",
                "objective.first.evaluate.every=2"]


@pytest.mark.parametrize("scale", ["bundled", "paper"])
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in ("correction", "table1")])
def test_every_run_differs_from_the_preset_in_what_its_name_says(name, scale, tmp_path):
    """Every configuration is valid, and the keys that differ from the base run are those of the table."""
    base = {run.curve: run for run in plan_runs(EXPERIMENTS["table3"], SCALES[scale], tmp_path)}["base"]
    for run in plan_runs(EXPERIMENTS[name], SCALES[scale], tmp_path):
        changed = set(find_differences(base.config.model_dump(mode="json"), run.config)) - {"train.seed", "train.steps"}
        expected = set(CURVES[run.curve].overrides)
        assert {key for key in changed if not any(key.startswith(e) for e in expected)} == set()
        assert all(any(key.startswith(e) for key in changed) for e in expected), run.curve


@pytest.mark.parametrize("scale", CORRECTION_SCALES)
def test_corrections_are_stages_of_the_preset(scale, tmp_path):
    """A curve is the first stage or the last one of the preset, but for what its row says; the last start from one run."""
    preset = load_config(DistillConfig, CORRECTION_SCALES[scale].preset, list(CORRECTION_SCALES[scale].settings))
    first, last = PIDCorrected.stages(preset)
    for run in plan_runs(EXPERIMENTS["correction"], CORRECTION_SCALES[scale], tmp_path):
        setting = CURVES[run.curve]
        free = {"train.seed", "student.init"} | ({"train.steps"} if setting.steps else set())
        stage = first if setting.first else last
        changed = set(find_differences(stage.model_dump(mode="json"), run.config)) - free
        assert changed <= setting.overrides.keys(), run.curve
        for key, value in setting.overrides.items():
            if key != "objective.first":
                assert run.config.objective[key.removeprefix("objective.")] == value, run.curve
        starts_anew = setting.first or run.curve == "corrected-from-teacher"
        assert run.config.student.init == ("teacher" if starts_anew else str(
            tmp_path / "curves" / f"pid-start-seed{run.seed}" / "student"))
        assert run.config.evaluate.every and not run.config.objective.get("first")


def test_rows_of_the_correction_cost_the_same(tmp_path):
    """PID alone, and the correction from the teacher's weights, have the operations of PID and a correction after it."""
    runs = {run.curve: run for run in plan_runs(*find_experiment("correction", "bundled"), tmp_path, 1)}
    start, corrected = runs["pid-start"].config, runs["corrected"].config
    pid = estimate_gpu_hours(start)
    correction = estimate_gpu_hours(corrected.model_copy(update={"student": start.student}))
    for curve, hours, config in (("pid", pid, start), ("corrected-from-teacher", correction, corrected)):
        assert hours * runs[curve].config.train.steps / config.train.steps == pytest.approx(pid + correction, rel=0.01), \
            f"{curve}: the preset has changed, and its steps in experiments.py have not"


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
    trained = list_trained(monkeypatch)
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


def list_trained(monkeypatch) -> list[str]:
    """Names of the folders in which runs are trained from now on."""
    trained: list[str] = []
    train = Distillation.train_in_steps
    monkeypatch.setattr(Distillation, "train_in_steps",
                        lambda self, folder, *rest: (trained.append(folder.name), train(self, folder, *rest))[1])
    return trained


def test_single_runs_are_trained_with_what_they_start_from(tmp_path, monkeypatch):
    trained = list_trained(monkeypatch)
    options = {"overrides": SMALL_STAGES, "only": ["sid-*1"]}
    assert "2 of 2 runs to train, 6 steps" in reproduce.estimate_cost(["correction"], "bundled", tmp_path, **options)[-1]
    assert reproduce.reproduce("correction", "bundled", tmp_path, **options) == []
    assert trained == ["pid-start-seed1", "sid-seed1"]
    assert not (tmp_path / "correction.md").exists()
    for name in trained:  # measured too, which takes longer than such a run
        (record,) = (tmp_path / "curves" / name / "evaluation").iterdir()
        assert {"fd", "precision", "recall"} <= json.loads(record.read_text()).keys()
    trained.clear()
    (tmp_path / "curves").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "curves")
    (tmp_path / "elsewhere" / "curves" / "sid-seed1" / "student" / "config.json").unlink()  # as if it had been stopped
    reproduce.reproduce("correction", "bundled", tmp_path / "elsewhere", **options)
    assert trained == ["sid-seed1"]
    with pytest.raises(PidistillError, match=r"pid-start-seed1 was made with other settings \(train\.steps\)"):
        reproduce.reproduce("correction", "bundled", tmp_path / "elsewhere",
                            overrides=[*SMALL_STAGES, "objective.first.train.steps=3"], only=["sid-seed1"])


def test_corrections_need_a_first_stage(tmp_path):
    with pytest.raises(PidistillError, match=r"pid-start-seed0 is the run of objective\.first"):
        reproduce.estimate_cost(["correction"], "bundled", tmp_path, overrides=["objective.first=null"])


def test_cost_of_students_that_start_from_runs_to_come(tmp_path):
    """At the paper's scale: the folder of the run that they start from is not there yet, its network is known."""
    *_, cost = reproduce.estimate_cost(["correction"], "paper", tmp_path, only=["joint-seed0"])
    start, joint = plan_runs(*find_experiment("correction", "paper"), tmp_path, only=["joint-seed0"])
    hours = estimate_gpu_hours(start.config) + estimate_gpu_hours(
        joint.config.model_copy(update={"student": start.config.student}))
    assert cost.startswith(f"about {hours:,.0f} hours")


def test_unknown_names_are_one_line(command, tmp_path):
    assert "did you mean 'table3'" in command("reproduce", "table33").error()
    assert "bundled, paper" in command("reproduce", "table3", "--scale", "huge").error()
    assert "unknown" in command("reproduce", "table3", "--plan", "--set", "tain.steps=3").error()
    assert "did you mean 'base-seed1'" in command("reproduce", "table3", "--only", "bse-seed1").error()
