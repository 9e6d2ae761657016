"""What a run's folder says of itself, whatever of it is there."""

from __future__ import annotations

import json

import pytest

from pidistill.core.errors import PidistillError
from pidistill.jobs.report.gather import PICTURE, gather_run


def write(folder, records=(), previews=()):
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text("teacher: bundled:digits\ntrain: {steps: 9, batch: 2}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in previews:
        (folder / "samples" / f"{step:06d}.png").write_bytes(b"x")
    return folder


def test_curves_and_previews_in_order(tmp_path):
    records = [{"step": 1, "loss/a": 2.0, "fd": None}, {"step": 2, "loss/a": 1.0, "loss/b": 3.0, "fd": 0.5}]
    run = gather_run(write(tmp_path / "r", records, [900, 1_000_000, 20]))
    (stage,) = run.stages
    assert stage.curve("loss/a") == [(1, 2.0), (2, 1.0)] and stage.curve("fd") == [(2, 0.5)] and stage.curve("x") == []
    assert stage.list_losses() == ["loss/a", "loss/b"] and stage.list_keys()[0] == "step"
    assert [step for step, _ in stage.previews] == [20, 900, 1_000_000]
    assert (run.name, run.done, run.picture, run.results) == ("r", False, None, {})


def test_ten_stages_are_in_order(tmp_path):
    write(tmp_path / "r")
    for number in (10, 2, 1):
        write(tmp_path / "r" / f"{number}-pid", [{"step": number}])
    (tmp_path / "r" / "2-pid" / PICTURE).write_bytes(b"x")
    run = gather_run(tmp_path / "r")
    assert [stage.name for stage in run.stages] == ["1-pid", "2-pid", "10-pid"] and run.picture.parent.name == "2-pid"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="holds no run"):
        gather_run(tmp_path)
