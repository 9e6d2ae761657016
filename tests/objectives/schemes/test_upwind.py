"""The z-free form of the upwind scheme against Eq. (11) as it is written."""

from __future__ import annotations

import pytest
import torch

from pidistill.objectives.pid import pid_residual
from pidistill.objectives.schemes.upwind import Upwind
from tests.helpers import SHAPE, exact_student, gaussian64, grid_of, invert, start, tiny_teacher


def direct(x_i, x_u, t, u):
    """x_i - t_i (x_i - x_u)/(t_i - u), the left side of Eq. (11)."""
    t, u = (v.reshape(-1, *[1] * (x_i.ndim - 1)) for v in (t, u))
    return x_i - t * (x_i - x_u) / (t - u)


def states(F, z, times, t_max):
    """Eq. (7) at every time, in the dtype of z."""
    s = [(t / t_max).to(z.dtype).reshape(-1, 1, 1, 1) for t in times]
    return [s_k * z + (1 - s_k) * F_k for s_k, F_k in zip(s, F)]


@pytest.fixture(params=[35, 250, 1000])
def case(request):
    """(F, z, i, t, T) in float64 at every index of a grid, with outputs that differ a little from time to time."""
    n, teacher = request.param, gaussian64()
    base, slope = torch.randn(2, n, *SHAPE, dtype=torch.float64)

    def F(*times):
        return tuple(base + slope * (t.log() / 4).reshape(-1, 1, 1, 1) for t in times)

    return F, start(SHAPE, batch=n), torch.arange(n), grid_of(teacher, n).t, teacher.t_max


def pairs(i, t):
    """t_i and its partner: the next point, and at the last one the point before."""
    return t[i], t[torch.where(i < len(t) - 1, i + 1, i - 1)]


def test_z_free_form_equals_the_direct_form(case):
    F, z, i, t, t_max = case
    side, times = Upwind()(F, z, i, t, t_max), pairs(i, t)
    x_i, x_u = states(F(*times), z, times, t_max)
    torch.testing.assert_close(side.x, x_i, rtol=1e-14, atol=1e-13)
    # float64 subtraction of states of magnitude 80 leaves about 1e-13 * N
    torch.testing.assert_close(side.prediction, direct(x_i, x_u, *times), rtol=1e-10, atol=1e-10)


def test_z_free_form_is_far_more_accurate_in_float32(case):
    F, z, i, t, t_max = case
    rounded = lambda *times: tuple(f.float() for f in F(*times))
    widened = lambda *times: tuple(f.double() for f in rounded(*times))
    reference = Upwind()(widened, z.float().double(), i, t, t_max).prediction
    free = (Upwind()(rounded, z.float(), i, t, t_max).prediction - reference).abs().mean()
    times = pairs(i, t)
    x_i, x_u = states(rounded(*times), z.float(), times, t_max)
    subtracted = (direct(x_i, x_u, *(u.float() for u in times)) - reference).abs().mean()
    assert free < 1e-5 and free < subtracted / 5


def test_pairs_are_neighbours_and_the_last_point_looks_back():
    t, times_of_calls = torch.tensor([80.0, 9.0, 2.0, 0.5], dtype=torch.float64), []

    def F(*times):
        times_of_calls.extend(u.tolist() for u in times)
        return tuple(torch.zeros(5, 2) for _ in times)

    side = Upwind()(F, torch.zeros(5, 2), torch.tensor([0, 1, 2, 3, 3]), t, 80.0)
    assert times_of_calls == [[80, 9, 2, 0.5, 0.5], [9, 2, 0.5, 2, 2]] and side.t.tolist() == times_of_calls[0]


def test_residual_on_the_exact_trajectory_halves_when_n_doubles():
    """Lemma 1's first half: the discretisation error is O(1/N)."""
    teacher, student = gaussian64(), exact_student(gaussian64())

    def residual(n: int) -> float:
        i = torch.arange(n - 1)
        z = start((2,), batch=1).expand(n - 1, 2)
        prediction, target = pid_residual(student, teacher, z, i, grid_of(teacher, n), Upwind())
        return (prediction - target).square().mean().sqrt().item()

    assert residual(500) / residual(1000) == pytest.approx(2, rel=0.05)


def test_zero_residual_is_the_euler_solution():
    """Lemma 1's second half, Eq. (13): the states of Euler's method have residual zero, at 0 ... N-2."""
    from pidistill.models.samplers.euler import euler

    teacher, n = tiny_teacher().double(), 20
    grid, z = grid_of(teacher, n), start(SHAPE, batch=2)
    with torch.no_grad():
        xs = torch.stack([z, *(x for _, x in euler(teacher, z, grid.t, torch.tensor([0, 2])))])
        for i in range(n - 1):
            index = torch.full((2,), i)
            # At T the output is multiplied by 0; any finite value will do.
            F = lambda *times, i=i: tuple(
                torch.zeros_like(z) if float(t[0]) == teacher.t_max else invert(xs[k], z, t, teacher.t_max)
                for k, t in zip((i, i + 1), times, strict=True))
            side = Upwind()(F, z, index, grid.t, teacher.t_max)
            residual = side.prediction - teacher(side.x, side.t, torch.tensor([0, 2]))
            assert residual.abs().max() < 1e-9, i


def test_other_states_have_a_residual():
    """The former test can fail: the exact trajectory is not Euler's."""
    teacher = gaussian64()
    prediction, target = pid_residual(exact_student(teacher), teacher, start((2,), batch=9), torch.arange(9),
                                      grid_of(teacher, 10), Upwind())
    assert (prediction - target).abs().max() > 1e-3
