"""Runs of objectives that learn from images, left between two checkpoints, end bit for bit as if nothing had been."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from tests.system.test_phases import configure, lines, run, state

METHODS = {
    "consistency": {"name": "consistency", "schedule": "adaptive", "s0": 3, "s1": 20, "schedule_steps": 7},
    "consistency_training": {"name": "consistency_training", "s0": 4, "s1": 16, "schedule_steps": 7},
    "ctm": {"name": "ctm", "ode_steps": 3, "mu": 0.9, "adversarial": 0.5, "adversarial_start": 2, "r1": 0.1},
}
KEPT = {"consistency": {"copy-target"}, "consistency_training": set(),
        "ctm": {"copy-target", "discriminator", "optimizer-discriminator"}}  # beside student, average and optimiser


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_left_and_goes_on_changes_nothing(data, tmp_path, method):
    config = configure(data, objective=METHODS[method], **{"log.every": 1})
    run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for step in (6, 7):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{step:06d}")
    run(config, tmp_path / "run")
    a, b = state(tmp_path / "whole", 7), state(tmp_path / "run", 7)
    kept = {key.split("/")[0] for key in a} - {"student", "student-ema-0.9"}
    assert kept - {name for name in kept if name.startswith("optimizer")} == {
        name for name in KEPT[method] if not name.startswith("optimizer")}
    assert a.keys() == b.keys() and [key for key in a if not torch.equal(a[key], b[key])] == []
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")
    moved = [key for key in a if key.startswith("student/") and not torch.equal(a[key], state(tmp_path / "run", 3)[key])]
    assert moved
