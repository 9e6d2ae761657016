"""Checkpoints of a tiny state, written and listed."""

from __future__ import annotations

import torch

from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from pidistill.objectives.pid import PID
from pidistill.training.checkpoint import collect
from pidistill.training.checkpoint_writer import Checkpoints
from pidistill.training.ema import EMA
from pidistill.training.optimizer import RAdam
from tests.helpers import MLP, grid_of

RATES = (0.5, 0.9, 0.0)


def make_state(seed: int, steps: int = 0):
    """Make objective, averages and optimiser after so many random steps."""
    torch.manual_seed(seed)
    teacher = gaussian("2")
    objective = PID(make_student(teacher, "random", MLP), teacher, grid_of(teacher, 5))
    optimizer, ema = RAdam(objective.parameters(), lr=0.1), EMA(objective.networks, RATES)
    for step in range(steps):
        for p in objective.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        ema.update(step)
    return objective, ema, optimizer


def write_checkpoints(folder, *steps: int, state=None, **options) -> None:
    """Write checkpoints of the same state."""
    tensors = collect(*(state or make_state(0, steps=1)))
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, tensors, {"config": {"k": step}})
    assert checkpoints.close() is None


def list_names(folder) -> list[str]:
    """List the names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
