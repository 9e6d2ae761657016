"""The verbs that measure print a table and write its numbers."""

from __future__ import annotations

import json

import numpy as np


def test_evaluate_a_student_and_a_teacher(cli, runs, tmp_path):
    result = cli("evaluate", runs / "student", "--num", 6, "--batch", 4, "--steps", 3, "--out", tmp_path / "e.json")
    assert result.code == 0 and "student" in result.out and "5x fewer" in result.out
    results = json.loads((tmp_path / "e.json").read_text())
    assert results["teacher"]["nfe"] == 5 and (rmse := results["student"]["trajectory_rmse"]) > 0
    shifted = cli("evaluate", runs / "student", "--num", 6, "--steps", 3, "--first-seed", 50, "--out", tmp_path / "f.json")
    assert shifted.code == 0
    assert json.loads((tmp_path / "f.json").read_text())["student"]["trajectory_rmse"] != rmse
    assert cli("evaluate", "gaussian:2", "--num", 4).code == 0


def test_evaluate_takes_several_rates_and_repeats(cli, runs, tmp_path):
    line = ["evaluate", runs / "student", "--num", 4, "--steps", 2, "--metrics", "rms"]
    result = cli(*line, "--repeats", 2, "--out", tmp_path / "e.json")
    assert result.code == 0 and "minimum" in result.out and "mean" in result.out
    assert "--ema takes rates" in cli(*line, "--ema", "high").error()
    assert "0.5" in cli(*line, "--ema", "0.5").error()


def test_reference_keeps_as_many_features_as_it_is_told(cli, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    line = ["reference", tmp_path / "images.npz", "--features", "digits", "--batch", 4, "--out", tmp_path / "r.npz"]
    for flags, kept in (([], 6), (["--keep", 3, "--force"], 3), (["--keep", 0, "--force"], None)):
        result = cli(*line, *flags)
        assert result.code == 0, result.err
        with np.load(tmp_path / "r.npz") as file:
            assert int(file["num"]) == 6 and file["sigma"].shape == (len(file["mu"]),) * 2
            assert (len(file["features"]) if "features" in file else None) == kept
    assert "--force" in cli(*line).error()


def test_compare_prints_its_table_and_its_files(cli, tmp_path):
    result = cli("compare", "--teacher", "gaussian:2,modes=4,std=0.1", "--samplers", "heun:4", "euler:9", "--num", 8,
                 "--out", tmp_path / "c")
    assert result.code == 0, result.err
    table = next((tmp_path / "c").glob("*.md")).read_text()
    assert table in result.out and "heun" in table and "euler" in table
    for path in (tmp_path / "c").iterdir():
        assert path.suffix not in (".md", ".csv", ".json") or str(path) in result.out
    assert "two" in cli("compare", "--teacher", "gaussian:two").error()
