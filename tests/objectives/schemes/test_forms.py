"""Every scheme's z-free form against x - t dx/dt as it is written, on a network; and what float32 makes of both."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pidistill.core.registry import build, list_members
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from tests.helpers import MLP, exact_student, gaussian64, grid_of, network, start, tiny_teacher


def wide(t, x):
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def neighbour(i, n):
    """The next point, and at the last one the point before."""
    return torch.where(i < n - 1, i + 1, i - 1)


def upwind(student, z, i, t):
    j = neighbour(i, len(t))
    x, x_u = student(z, t[i]), student(z, t[j])
    return x - wide(t[i], x) * (x - x_u) / wide(t[i] - t[j], x)


def midpoint(student, z, i, t):
    j = neighbour(i, len(t))
    x, x_u = student(z, t[i]), student(z, t[j])
    return (x + x_u) / 2 - wide((t[i] + t[j]) / 2, x) * (x - x_u) / wide(t[i] - t[j], x)


def central(student, z, i, t):
    """Inside the textbook's weights; at the ends the slope of the parabola that a linear system gives."""
    x, last, slopes = student(z, t[i]), len(t) - 1, []
    for row, k in enumerate(i.tolist()):
        at = lambda m, row=row: student(z[row:row + 1], t[m:m + 1])[0]
        if 0 < k < last:
            h, q = float(t[k - 1] - t[k]), float(t[k] - t[k + 1])
            slopes.append((q / h * (at(k - 1) - at(k)) + h / q * (at(k) - at(k + 1))) / (h + q))
        else:
            ks = [k, k + 1, k + 2] if k == 0 else [k, k - 1, k - 2]
            offsets = (t[ks] - t[k]).to(z.dtype)
            powers = torch.stack([offsets**p for p in range(3)], dim=1)
            values = torch.stack([at(m) for m in ks]).flatten(1)
            slopes.append(torch.linalg.solve(powers, values)[1].reshape(x.shape[1:]))
    return x - wide(t[i], x) * torch.stack(slopes)


def autodiff(student, z, i, t):
    """Backward mode, one output at a time."""
    u = t[i].to(z.dtype).requires_grad_()
    with torch.enable_grad():
        x = student(z, u)
        columns = [torch.autograd.grad(column.sum(), u, retain_graph=True)[0] for column in x.flatten(1).T]
    return (x - wide(u, x) * torch.stack(columns, dim=1).reshape(x.shape)).detach()


DIRECT = {"upwind": upwind, "midpoint": midpoint, "central": central, "autodiff": autodiff}


def small_student(kind: str):
    """Unconditional; the song_unet has attention."""
    if kind == "mlp":
        return make_student(gaussian64((1, 2, 2)), "random", MLP)
    return make_student(tiny_teacher(classes=0))


@pytest.mark.parametrize("kind", ["mlp", "song_unet"])
@pytest.mark.parametrize("points", [3, 20])
@pytest.mark.parametrize("name", list_members("schemes"))
def test_prediction_is_x_minus_t_times_its_derivative(name, points, kind):
    """In float64 at every grid point, so at both ends too."""
    student = small_student(kind).double()
    t, i, z = grid_of(student, points).t, torch.arange(points), start(student.shape, points)
    with torch.no_grad():
        side = build("schemes", name)(network(student, z), z, i, t, student.t_max)
        expected = DIRECT[name](student, z, i, t)
    torch.testing.assert_close(side.prediction, expected, rtol=1e-9, atol=1e-9)
    assert (side.prediction - side.x).abs().amax() > 1  # z, of magnitude 80, is gone


@pytest.mark.parametrize("name", list_members("schemes"))
def test_only_midpoint_predicts_what_upwind_does(name):
    """The secant meets t = 0 where it does; only the point at which the teacher is called differs."""
    student = small_student("mlp").double()
    t, i, z = grid_of(student, 9).t, torch.arange(9), start(student.shape, 9)
    with torch.no_grad():
        a, b = (build("schemes", n)(network(student, z), z, i, t, student.t_max) for n in ("upwind", name))
    same = (a.prediction - b.prediction).flatten(1).abs().amax(1) < 1e-12
    assert bool(same.all()) == (name in ("upwind", "midpoint")) and bool(same.any()) == bool(same.all())
    assert torch.equal(a.x, b.x) == (name != "midpoint")


def test_midpoint_and_upwind_call_the_teacher_at_different_times():
    t, z = grid_of(gaussian64(), 6).t, start((2,), 6)
    student = exact_student(gaussian64())
    times_of_calls = build("schemes", "midpoint")(network(student, z), z, torch.arange(6), t, 80.0).t
    torch.testing.assert_close(times_of_calls[:-1], (t[:-1] + t[1:]) / 2)
    assert times_of_calls[-1] == times_of_calls[-2]  # one interval fewer than points: the last is taken twice


def test_central_neighbours():
    """t_1, t_2 at T; t_{N-2}, t_{N-3} at eps; both sides between."""
    t, times_of_calls = torch.tensor([80.0, 30.0, 9.0, 2.0, 0.5], dtype=torch.float64), []

    def F(*times):
        times_of_calls.extend(u.tolist() for u in times)
        return tuple(torch.zeros(5, 2) for _ in times)

    build("schemes", "central")(F, torch.zeros(5, 2), torch.arange(5), t, 80.0)
    assert times_of_calls == [[80, 30, 9, 2, 0.5], [9, 80, 30, 9, 2], [30, 9, 2, 0.5, 9]]


def test_central_is_exact_for_parabolas_at_every_point():
    """x = z + (t - T)(p + q t): no scheme of first order, and no rule without central's weights, gives its derivative."""
    teacher, n = gaussian64(), 8
    p, q = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([0.05, 0.01], dtype=torch.float64)
    t, i, z = grid_of(teacher, n).t, torch.arange(n), start((2,), n)
    F = lambda *times: tuple(z - 80 * (p + q * wide(u, z)) for u in times)  # Eq. (7) gives that x
    expected = z + (wide(t, z) - 80) * (p + q * wide(t, z)) - wide(t, z) * (p + q * (2 * wide(t, z) - 80))
    torch.testing.assert_close(build("schemes", "central")(F, z, i, t, 80.0).prediction, expected, rtol=1e-11, atol=1e-11)
    assert (build("schemes", "upwind")(F, z, i, t, 80.0).prediction - expected).abs().min() > 1e-7


def test_central_keeps_its_order_on_a_rough_grid():
    """Steps that alternate by a factor of two: (x_{i-1} - x_{i+1})/(t_{i-1} - t_{i+1}) would have order 1 there."""
    gaussian = gaussian64()
    student, scheme = exact_student(gaussian), build("schemes", "central")

    def errors(points: int) -> tuple[float, float]:
        steps = torch.tensor([2.0, 1.0], dtype=torch.float64).repeat(points // 2)
        t = 2 - 1.9 * torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)]) / steps.sum()
        i = torch.arange(1, points)
        z = start((2,), 1).expand(len(i), 2)
        x, a, b = (student(z, t[k]) for k in (i, i - 1, i + 1))
        simple = x - wide(t[i], x) * (a - b) / wide(t[i - 1] - t[i + 1], x)
        ours = scheme(network(student, z), z, i, t, 80.0).prediction
        return tuple((prediction - gaussian(x, t[i])).abs().mean().item() for prediction in (ours, simple))

    orders = np.log2(np.array(errors(400)) / np.array(errors(800)))
    assert orders == pytest.approx([2, 1], abs=0.1)


# rounding ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """The digits network as a student, in float32 and in float64."""
    student = make_student(load_teacher("bundled:digits")).eval().requires_grad_(False)
    return student, copy.deepcopy(student).double()


class Labelled:
    """A student whose labels are set, called as the direct forms call one."""

    def __init__(self, student, labels):
        self.student, self.labels = student, labels

    def __call__(self, z, t):
        return self.student(z, t, self.labels)


@pytest.mark.parametrize("name", list_members("schemes"))
@pytest.mark.parametrize("points", [250, 1000])
def test_float32_error_at_45_on_the_digits_network(digits, name, points):
    """R.m.s. error of x - t dx/dt against float64, t = 45, N = 250 and 1000; its own r.m.s. is 1.74.

    z-free: upwind and midpoint 7.5e-6, 3.0e-5; central 3.8e-6, 1.5e-5; autodiff 3e-7 whatever N.
    States subtracted: 1.1e-4 and 7.0e-4; central 0.5e-4 and 2.6e-4.
    """
    student, exact = digits
    t, y = grid_of(student, points).t, torch.arange(4)
    i = (t - 45).abs().argmin().expand(4)
    z = start(student.shape, 4, dtype=torch.float32)
    scheme = build("schemes", name)
    with torch.no_grad():
        free = scheme(network(student, z, y), z, i, t, 80.0).prediction
        reference = scheme(network(exact, z.double(), y), z.double(), i, t, 80.0).prediction
    rms = lambda e: e.square().mean().sqrt().item()
    error = rms(free - reference)
    assert rms(reference) > 1
    if name == "autodiff":
        assert error < 1e-6
        return
    if name == "central":
        h, q = t[i - 1] - t[i], t[i] - t[i + 1]
        x, a, b = (student(z, t[k], y) for k in (i, i - 1, i + 1))
        subtracted = x - wide(t[i], z) * ((wide(q / h, z) * (a - x) + wide(h / q, z) * (x - b)) / wide(h + q, z))
    else:
        subtracted = DIRECT[name](Labelled(student, y), z, i, t)
    assert error < 1.2e-5 * points / 250 and rms(subtracted - reference) > 8 * error
