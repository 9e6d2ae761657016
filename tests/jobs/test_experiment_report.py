"""The report of an experiment, of runs of seconds."""

from __future__ import annotations

import json

import pytest

from pidistill.jobs import reproduce
from tests.jobs.test_reproduce import SMALL


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
    assert (tmp_path / "figure7-samples.png").stat().st_size > 500


@pytest.mark.parametrize("name", ["figure8", "samples", "table7"])
def test_pictures(name, tmp_path):
    reproduce.reproduce(name, "bundled", tmp_path, seeds=1, overrides=SMALL)
    assert (tmp_path / f"{name}.md").exists()
    assert (tmp_path / (f"{name}.png" if name != "table7" else "table7-samples.png")).stat().st_size > 500
