"""Checkpoints: everything comes back, the newest whole one counts."""

from __future__ import annotations

import pytest
import torch

from pidistill.checkpoint import latest, prune, restore, save
from pidistill.ema import EMA
from pidistill.errors import PidistillError
from pidistill.objectives.pid import PID
from pidistill.student import make_student
from pidistill.teachers.gaussian import gaussian
from tests.helpers import MLP, grid_of

RATES = (0.5, 0.9, 0.0)


def make(seed: int, steps: int = 0):
    torch.manual_seed(seed)
    teacher = gaussian("2")
    objective = PID(make_student(teacher, "random", MLP), teacher, grid_of(teacher, 5))
    optimizer, ema = torch.optim.RAdam(objective.parameters(), lr=0.1), EMA(objective.networks, RATES)
    for step in range(steps):
        for p in objective.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        ema.update(step)
    return objective, ema, optimizer, torch.amp.GradScaler("cpu", enabled=False)


def test_everything_comes_back(tmp_path):
    objective, ema, optimizer, scaler = make(0, steps=3)
    save(tmp_path / "checkpoints", 3, 2, objective, ema, optimizer, scaler)
    other, other_ema, other_optimizer, other_scaler = make(1)
    assert restore(tmp_path, other, other_ema, other_optimizer, other_scaler) == 3
    averages = [(ema.networks[rate], other_ema.networks[rate]) for rate in RATES]
    for a, b in ((objective.networks, other.networks), *averages):
        for key, value in a["student"].state_dict().items():
            assert torch.equal(value, b["student"].state_dict()[key])
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys() and ours
    for i in ours:
        assert all(torch.equal(ours[i][key], theirs[i][key]) for key in ours[i])
    assert {path.suffix for path in (tmp_path / "checkpoints" / "000003").iterdir()} == {".json", ".safetensors"}


def test_no_checkpoint_is_step_0(tmp_path):
    assert restore(tmp_path, *make(0)) == 0 and latest(tmp_path) is None


def touch(folder, *steps):
    for step in steps:
        (folder / f"{step:06d}").mkdir(parents=True)
        (folder / f"{step:06d}" / "state.json").write_text("{}")


def test_newest_is_the_largest_number(tmp_path):
    touch(tmp_path, 5, 999000, 1000000)
    assert latest(tmp_path).name == "1000000"  # names sort otherwise from a million steps on
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000000", "999000"]


def test_half_a_checkpoint_does_not_count(tmp_path):
    touch(tmp_path, 5)
    (tmp_path / "000007").mkdir()
    (tmp_path / ".000009.123").mkdir()
    assert latest(tmp_path).name == "000005"


@pytest.mark.parametrize("name", ["student", "student-ema-0.5", "student-ema-0.9", "optimizer"])
def test_truncated_checkpoint_is_one_line(tmp_path, name):
    save(tmp_path / "checkpoints", 1, 2, *make(0, steps=1))
    path = tmp_path / "checkpoints" / "000001" / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(PidistillError, match="truncated") as caught:
        restore(tmp_path, *make(0))
    assert "\n" not in str(caught.value)
