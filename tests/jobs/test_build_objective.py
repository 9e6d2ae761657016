"""What a distillation's settings make of an objective, and what they cannot have together."""

from __future__ import annotations

import sys

import pytest

import pidistill
from pidistill.core.errors import PidistillError
from pidistill.jobs.build_objective import build_objective
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config

QUICK = {"student.init": "random", "student.net": {"name": "mlp", "width": 8, "depth": 1}, "train.steps": 2,
         "train.batch": 4, "evaluate.num": 4, "grid.points": 10}
SPEC = "gaussian:2,modes=4,std=0.1"


@pytest.mark.parametrize("changes, words", [
    ({"objective": "edm"}, "the objective edm trains a teacher: pidistill train-teacher"),
    ({"data": "digits"}, "the objective pid needs no images; leave `data` out"),
    ({"objective": "python:builtins:dict"}, r"python:builtins:dict must be a subclass of pidistill\.Objective")])
def test_what_a_distillation_cannot_minimise_is_refused(tmp_path, changes, words):
    with pytest.raises(PidistillError, match=words) as caught:
        pidistill.distill(SPEC, out=tmp_path / "run", overrides=QUICK | changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


MINE = """
from pidistill.objectives.distances.l1 import L1
from pidistill.objectives.pid import PID
from pidistill.objectives.schemes.upwind import Upwind

class Mine(PID):
    def __init__(self, setup, *, gain: float = 1.0, **options):
        super().__init__(setup, scheme="python:pidistill_mine:Slow", distance={"name": "python:pidistill_mine:Far"})
        self.gain = gain

    def loss(self, batch, step=0):
        return self.gain * super().loss(batch, step)

class Far(L1):
    pass

class Slow(Upwind):
    pass
"""


def test_a_users_own_objective_is_trained(tmp_path, monkeypatch):
    """With a distance and a scheme of the user's own too: here all of them ours under other names, and a gain."""
    (tmp_path / "pidistill_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    own = {"name": "python:pidistill_mine:Mine", "gain": 3}
    try:
        mine, ours = ([step.losses["pid"] for step in pidistill.steps(
            SPEC, out=tmp_path / name, overrides=QUICK | {"objective": objective, "train.steps": 1})]
            for name, objective in (("mine", own), ("ours", {"name": "pid", "distance": "l1"})))
        assert mine == pytest.approx([3 * loss for loss in ours], rel=1e-6) and len(ours) == 1
        config = load_config(DistillConfig, tmp_path / "mine" / "config.yaml")
        made = build_objective(config, load_teacher(SPEC))
        assert type(made).__name__ == "Mine" and type(made.scheme).__name__ == "Slow" and made.gain == 3
    finally:
        sys.modules.pop("pidistill_mine", None)
