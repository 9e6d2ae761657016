"""Runs that the verbs' tests share."""

from __future__ import annotations

import pytest

from tests.cli.flags import SHORT


@pytest.fixture(scope="session")
def runs(tmp_path_factory, command, images_npz, net_flags):
    """teacher/: trained on a small NPZ; student/: distilled from it; both by real processes."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--set", f"data={images_npz}", *net_flags, "--set", "train={steps: 3, batch: 4}", "--set", "preview.seeds=0-3"]
    result = command("train-teacher", *flags, "--out", folder / "teacher")
    assert result.code == 0, result.err
    assert f"teacher in {folder / 'teacher' / 'teacher'}" in result.out
    result = command("distill", "--teacher", folder / "teacher", *SHORT, "--out", folder / "student")
    assert result.code == 0, result.err
    (folder / "distill.out").write_text(result.out)
    return folder
