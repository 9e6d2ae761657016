"""Checkpoints of a tiny state, written and listed."""

from __future__ import annotations

import torch

from pidistill.training.checkpoint import collect
from pidistill.training.checkpoint_writer import Checkpoints
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.step import Step
from tests.runs import make_objective

RATES = (0.5, 0.9, 0.0)
PHASES = {"pid": {"loss": 1.5, "good": 3.0, "norm": 0.25, "skipped": 2, "loss_scale": {}}}


def make_state(seed: int, steps: int = 0, rates: tuple[float, ...] = RATES) -> Step:
    """Make a run's step and take it so many times with random gradients."""
    config = load_config(DistillConfig, "default", {"train.steps": 10, "train.batch": 4, "optimizer.name": "radam",
                                                    "optimizer.lr": 0.1, "ema": list(rates), "out": "x"})
    step = Step(make_objective("2", 5, seed), config, torch.device("cpu"))
    phase, = step.phases.values()
    for number in range(steps):
        for p in phase.parameters:
            p.grad = torch.randn_like(p)
        phase.optimizer.step()
        step.ema.update(number)
    return step


def write_checkpoints(folder, *steps: int, state: Step | None = None, **options) -> None:
    """Write checkpoints of the same state."""
    tensors = collect(state or make_state(0, steps=1))
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, tensors, {"config": {"k": step}, "phases": PHASES})
    assert checkpoints.close() is None


def list_names(folder) -> list[str]:
    """List the names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
