"""Tiny runs that draw their own pairs, interrupted and compared."""

from __future__ import annotations

import pytest
import torch

import pidistill
from pidistill.jobs import pairs as drawing
from pidistill.jobs.build_objective import build_objective
from pidistill.jobs.distill import resume_distillation
from pidistill.jobs.dry_run import count_operations
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.runs import metrics
from tests.system.test_phases import state

BLACK_BOX = "gaussian:1x4x4,modes=2,std=0.3,classes"
STEPS = 7


def overrides(changes: dict) -> dict:
    """The settings of a run of STEPS steps, whose 600 pairs are in three shards."""
    return {"student.init": "random", "student.net": {"name": "mlp", "width": 16, "depth": 2}, "pairs.num": 600,
            "pairs.sampler": "heun:6", "train.steps": STEPS, "train.batch": 6, "log.every": 2, "checkpoint.every": 3,
            "optimizer.lr": 1e-2, "ema": 0.9, "evaluate.num": 8, "preview.every": 100} | changes


def check_interruptions(tmp_path, monkeypatch, changes: dict) -> None:
    """A run that is left among its steps, and one that is left among its pairs, end as one that is not, bit for bit."""
    start = lambda name: pidistill.steps(BLACK_BOX, out=tmp_path / name, overrides=overrides(changes))
    plain = drawing.draw_shard

    def interrupt(*args):
        if args[3] == 1:
            raise KeyboardInterrupt
        return plain(*args)

    for _ in start("whole"):
        pass
    for step in start("steps"):
        if step.number == 4:
            break
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="1 of 3 shards stay"):
        patch.setattr(drawing, "draw_shard", interrupt)
        next(start("pairs"))
    shards = lambda name: {path.name: path.read_bytes() for path in (tmp_path / name / "pairs").glob("*.safetensors")}
    assert len(shards("pairs")) == 1
    for name in ("steps", "pairs"):
        resume_distillation(tmp_path / name)
        ours, whole = (state(tmp_path / folder, STEPS) for folder in (name, "whole"))
        assert ours.keys() == whole.keys() and [key for key in ours if not torch.equal(ours[key], whole[key])] == []
        assert shards(name) == shards("whole") and metrics(tmp_path / name) == metrics(tmp_path / "whole")


def count_of(preset: str, changes: dict) -> dict[str, float]:
    """The operations of a sample of a run with the bundled teacher, by phase, as a dry run counts them."""
    config = load_config(DistillConfig, preset, changes)
    return count_operations(build_objective(config, load_teacher("bundled:digits", weights=False).to("meta"), "meta"))
