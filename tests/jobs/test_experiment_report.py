"""The report of an experiment, of runs of seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pidistill.jobs import reproduce
from pidistill.jobs.experiment_report import format_report, gather_curve, place_curve
from pidistill.jobs.experiments import find_experiment, plan_runs
from tests.jobs.test_reproduce import SMALL, SMALL_STAGES


def test_a_report_has_table_numbers_and_plot(tmp_path):
    files = reproduce.reproduce("figure7", "bundled", tmp_path, seeds=2, overrides=SMALL[:-1])
    assert [path.name for path in files] == ["figure7.md", "figure7.json", "figure7.png"]
    record = json.loads((tmp_path / "figure7.json").read_text())
    assert [len(curve["runs"]) for curve in record["curves"].values()] == [2, 2]
    for curve in record["curves"].values():
        for run in curve["runs"]:
            assert [step for step, _ in run["fd"]] == [2, 4] and run["commit"] and run["seed"] in (0, 1)
    text = (tmp_path / "figure7.md").read_text()
    last = record["curves"]["l2"]["runs"][1]["fd"][-1][1]
    assert f"{last:.2f}" in text and "5.85" in text and "3.92" in text and "figure7.png" in text
    assert "paper, FID" in text and "precision" not in text and " + " not in text
    assert (tmp_path / "figure7-samples.png").stat().st_size > 500


@pytest.mark.parametrize("name", ["figure8", "samples", "table7"])
def test_pictures(name, tmp_path):
    reproduce.reproduce(name, "bundled", tmp_path, seeds=1, overrides=SMALL)
    assert (tmp_path / f"{name}.md").exists()
    assert (tmp_path / (f"{name}.png" if name != "table7" else "table7-samples.png")).stat().st_size > 500


def test_the_report_of_the_correction(tmp_path):
    """What has been measured of the finished students stands in the table; the costs are those of both stages."""
    curves = {"pid-start": "", "joint": ""}
    experiment, scale = find_experiment("correction", "bundled")
    files = reproduce.reproduce("correction", "bundled", tmp_path, seeds=1, overrides=SMALL_STAGES, only=["joint-*"])
    runs = plan_runs(replace(experiment, paper=curves), scale, tmp_path, 1, SMALL_STAGES)
    assert files == [] and all(run.done for run in runs)
    numbers = {"fd": 0.125, "precision": 0.75, "recall": 0.25}
    measured = {"teacher": numbers, "pid-start-seed0": numbers, "joint-seed0": numbers | {"fd": 7.5}}
    start, joint = (gather_curve(run.curve, [run], "", scale, measured) for run in runs)
    assert [[step for step, _ in curve.runs[0]["fd"]] for curve in (start, joint)] == [[2], [2, 4]]
    assert place_curve(start, "fd").runs == [{"fd": start.runs[0]["fd"]}]
    assert place_curve(joint, "fd").runs == [{"fd": [(step + 2, fd) for step, fd in joint.runs[0]["fd"]]}]
    assert joint.runs[0]["start"] | {"seconds": 0} == {"curve": "pid-start", "steps": 2, "seconds": 0}
    record = {"curves": {"pid-start": start.record(), "joint": joint.record()}, "teacher": numbers,
              "command": "", "preset": "", "versions": {"torch": ""}}
    text = format_report("correction", replace(experiment, paper=curves), scale, record)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")]
                      for line in text.splitlines() if line.startswith("|"))
    assert "paper, FID" not in head
    teacher, first, cells = (dict(zip(head, row, strict=True)) for row in rows)
    assert (cells["steps"], cells["mean"], cells["precision"], cells["recall"]) == ("2 + 4", "7.50", "0.750", "0.250")
    assert cells["r.m.s. to teacher"] == f"{joint.runs[0]['trajectory_rmse'][-1][1]:.3f}"
    assert cells["spread"] == f"{joint.runs[0]['spread'][-1][1]:.3f}" and first["spread"] == "-"
    assert teacher["precision"] == "0.750" and "(FreeFlow, CVPR 2026)" in text


def test_the_numbers_are_those_of_the_student_that_was_kept(tmp_path):
    """With `evaluate.keep_best` that is not the last one."""
    reproduce.reproduce("figure8", "bundled", tmp_path, seeds=1, overrides=[*SMALL, "evaluate.keep_best=trajectory_rmse"])
    (run,) = plan_runs(*find_experiment("figure8", "bundled"), tmp_path, 1, [*SMALL, "evaluate.keep_best=trajectory_rmse"])
    path = run.folder / "student" / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 2}))
    (line,) = gather_curve("base", [run], "", find_experiment("figure8", "bundled")[1], {}).runs
    assert line["student"] == {"step": 2, "fd": line["fd"][0][1], "trajectory_rmse": line["trajectory_rmse"][0][1]}


@pytest.mark.slow
def test_the_whole_experiment_on_the_correction(tmp_path):
    files = reproduce.reproduce("correction", "bundled", tmp_path, seeds=1, overrides=[*SMALL_STAGES, "train.steps=2"])
    assert [path.name for path in files] == ["correction.md", "correction.json", "correction.png"]
    assert (tmp_path / "correction-samples.png").stat().st_size > 500
    record = json.loads((tmp_path / "correction.json").read_text())
    assert all(0 <= run["student"]["recall"] <= 1 for curve in record["curves"].values() for run in curve["runs"])
