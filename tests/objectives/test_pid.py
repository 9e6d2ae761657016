"""The PID loss against a plain transcription of Algorithm 1."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pidistill.distances.l2 import L2
from pidistill.errors import PidistillError
from pidistill.objectives.pid import PID, build_part, pid_residual
from pidistill.schemes.upwind import Upwind
from pidistill.seeds import stream
from pidistill.student import make_student
from tests.helpers import SHAPE, grid_of, start, tiny_teacher

POINTS = 30


def setting(dtype=torch.float64):
    teacher = tiny_teacher()
    student = make_student(teacher)
    with torch.no_grad():  # another function than the teacher's, as after some training
        for p in student.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    batch = {"z": start(SHAPE, 6, dtype=dtype), "i": torch.tensor([0, 3, 11, 20, POINTS - 2, POINTS - 1]),
             "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    return teacher.to(dtype), student.to(dtype), batch


def algorithm_1(student, teacher, batch, grid):
    """Lines 5 to 7 as the paper writes them: one pass a time, states subtracted."""
    i, z, y = batch["i"], batch["z"], batch["labels"]
    j = torch.where(i < len(grid.t) - 1, i + 1, i - 1)
    t, u = grid.t[i].to(z.dtype), grid.t[j].to(z.dtype)
    x, x_u = student(z, t, y), student(z, u, y)
    wide = lambda v: v[:, None, None, None]
    dxdt = (x - x_u) / wide(t - u)
    with torch.no_grad():
        x_teacher = teacher(x, t, y)
    return (x - wide(t) * dxdt - x_teacher).square().flatten(1).mean(1)


def loss_and_gradient(student, loss):
    student.zero_grad()
    values = loss()
    values.mean().backward()
    return values.detach(), torch.cat([p.grad.flatten() for p in student.parameters()])


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_loss_and_gradient_are_those_of_algorithm_1(dtype, rtol):
    teacher, student, batch = setting(dtype)
    grid = grid_of(teacher, POINTS)
    ours, g = loss_and_gradient(student, lambda: PID(student, teacher, grid)(batch))
    plain, h = loss_and_gradient(student, lambda: algorithm_1(student, teacher, batch, grid))
    torch.testing.assert_close(ours, plain, rtol=rtol, atol=rtol)
    assert (g - h).norm() < rtol * h.norm() and h.norm() > 0


def test_no_gradient_flows_through_the_teacher():
    """The target is a constant: sg(.) of Eq. (11)."""
    teacher, student, batch = setting()
    prediction, target = pid_residual(student, teacher.requires_grad_(True), batch["z"], batch["i"],
                                      grid_of(teacher, POINTS), Upwind(), batch["labels"])
    assert prediction.requires_grad and not target.requires_grad


def test_labels_reach_student_and_teacher():
    teacher, student, batch = setting()
    sides = [pid_residual(student, teacher, batch["z"], batch["i"], grid_of(teacher, POINTS), Upwind(), y)
             for y in (batch["labels"], (batch["labels"] + 1) % 3)]
    for a, b in zip(*sides):
        assert bool(((a - b).flatten(1).abs().amax(1) > 1e-6).all())


def test_draws_cover_the_grid_and_have_the_noise_of_t_max():
    teacher, student, _ = setting(torch.float32)
    objective = PID(student, teacher, grid_of(teacher, 5))
    rows = [objective.draw(stream(0, 0, k)) for k in range(400)]
    counts = np.bincount([row["i"] for row in rows], minlength=5)
    assert len(counts) == 5 and counts.min() > 50  # 80 expected: the last point is drawn too
    assert np.bincount([row["labels"] for row in rows], minlength=3).min() > 100
    z = np.stack([row["z"] for row in rows])
    assert z.dtype == np.float32 and z.shape == (400, *SHAPE)
    assert z.std() == pytest.approx(teacher.t_max, rel=0.02) and abs(z.mean()) < 2


def test_balance_divides_each_loss_by_its_own_magnitude():
    teacher, student, batch = setting()
    grid = grid_of(teacher, POINTS)
    e, g = loss_and_gradient(student, lambda: PID(student, teacher, grid)(batch))
    for p, floor in ((0.5, 1e-3), (1.0, 0.1)):
        balanced, _ = loss_and_gradient(student, lambda p=p, f=floor: PID(student, teacher, grid, balance=p, floor=f)(batch))
        torch.testing.assert_close(balanced, e / (e + floor) ** p)
    # The divisor is a constant: with a large floor the gradient is only scaled.
    _, h = loss_and_gradient(student, lambda: PID(student, teacher, grid, balance=1.0, floor=1e9)(batch))
    torch.testing.assert_close(h * 1e9, g, rtol=1e-6, atol=1e-9)


def test_distance_and_scheme_are_options():
    teacher, student, batch = setting()
    grid = grid_of(teacher, POINTS)
    losses = [PID(copy.deepcopy(student), teacher, grid, distance=d)(batch).detach()
              for d in ("l2", "l1", {"name": "pseudo_huber", "c": 0.1})]
    assert not torch.allclose(losses[0], losses[1]) and not torch.allclose(losses[0], losses[2])
    assert isinstance(build_part("distances", "l2"), L2)


@pytest.mark.parametrize("options, words", [
    ({"balance": 1.5}, "objective.balance"), ({"balance": -1}, "objective.balance"), ({"floor": 0}, "objective.floor"),
    ({"distance": "l3"}, "choices: features, l1, l2"), ({"scheme": "downwind"}, "upwind"), ({"distance": {"c": 1}}, "name"),
    ({"distance": {"name": "l2", "c": 1}}, "option")])
def test_bad_options_are_refused(options, words):
    teacher, student, _ = setting()
    with pytest.raises(PidistillError, match=words):
        PID(student, teacher, grid_of(teacher, 5), **options)
