"""The PID loss against a plain transcription of Algorithm 1."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.precision import autocast
from pidistill.core.registry import build_from_config, find_member, list_members
from pidistill.core.seeds import stream
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.forms import FORMS
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Setup
from pidistill.objectives.distances.l2 import L2
from pidistill.objectives.pid import PID, pid_residual
from pidistill.objectives.schemes.base import StudentSide
from pidistill.objectives.schemes.upwind import Upwind
from pidistill.training import setup
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.helpers import MLP, SHAPE, grid_of, pid_of, shake, start, tiny_teacher

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


def algorithm_1(student, teacher, batch, grid, stop_gradient=True):
    """Lines 5 to 7 as the paper writes them: one pass a time, states subtracted."""
    i, z, y = batch["i"], batch["z"], batch["labels"]
    j = torch.where(i < len(grid.t) - 1, i + 1, i - 1)
    t, u = grid.t[i].to(z.dtype), grid.t[j].to(z.dtype)
    x, x_u = student(z, t, y), student(z, u, y)
    wide = lambda v: v[:, None, None, None]
    dxdt = (x - x_u) / wide(t - u)
    x_teacher = teacher(x, t, y)
    x_teacher = x_teacher.detach() if stop_gradient else x_teacher
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
    ours, g = loss_and_gradient(student, lambda: pid_of(student, teacher, POINTS).loss(batch))
    plain, h = loss_and_gradient(student, lambda: algorithm_1(student, teacher, batch, grid))
    torch.testing.assert_close(ours, plain, rtol=rtol, atol=rtol)
    assert (g - h).norm() < rtol * h.norm() and h.norm() > 0


def digits_setting():
    """The bundled digits teacher, and a student some way from it."""
    teacher = load_teacher("bundled:digits")
    return teacher, shake(make_student(teacher), scale=0.02), 250


@pytest.mark.parametrize("make", [lambda: (*setting(torch.float32)[:2], POINTS), digits_setting], ids=["tiny", "digits-250"])
def test_float32_loss_and_gradient_against_algorithm_1_in_float64(make):
    """Within 1e-4: every sample's loss, and the gradient. Digits, N = 250: 1.7e-5 and 2.7e-5."""
    teacher, student, points = make()
    i, y = torch.linspace(0, points - 1, 16).long(), torch.arange(16) % 3
    z = start(student.shape, 16, dtype=torch.float32)
    ours, g = loss_and_gradient(student, lambda: pid_of(student, teacher, points).loss(dict(z=z, i=i, labels=y)))
    assert ours.dtype == g.dtype == torch.float32
    teacher, student = copy.deepcopy(teacher).double(), copy.deepcopy(student).double()
    batch = {"z": z.double(), "i": i, "labels": y}
    plain, h = loss_and_gradient(student, lambda: algorithm_1(student, teacher, batch, grid_of(teacher, points)))
    torch.testing.assert_close(ours.double(), plain, rtol=1e-4, atol=0)
    assert (g - h).norm() < 1e-4 * h.norm()


@pytest.mark.parametrize("points", [2, 3, 35, 1000])
@pytest.mark.parametrize("classes", [0, 3])
def test_any_number_of_grid_points(points, classes):
    """With and without classes, at both ends: Algorithm 1 again, and draws inside the grid."""
    teacher = tiny_teacher(classes=classes).double()
    student = shake(make_student(teacher)).double()
    objective = pid_of(student, teacher, points)
    samples = [objective.draw(stream(1, 0, k)) for k in range(20)]
    assert all(0 <= sample["i"] < points and ("labels" in sample) == bool(classes) for sample in samples)
    batch = {"z": start(SHAPE, 3), "i": torch.tensor([0, points // 2, points - 1]),
             **({"labels": torch.tensor([0, 1, 2])} if classes else {})}
    plain = algorithm_1(student, teacher, {"labels": None, **batch}, grid_of(teacher, points))
    torch.testing.assert_close(objective.loss(batch), plain, rtol=1e-7, atol=1e-9)


# the teacher's side --------------------------------------------------------------------------------------------------


def test_no_gradient_flows_through_the_teacher():
    """The target is a constant: sg(.) of Eq. (11)."""
    teacher, student, batch = setting()
    prediction, target = pid_residual(student, teacher.requires_grad_(True), batch["z"], batch["i"],
                                      grid_of(teacher, POINTS), Upwind(), batch["labels"])
    assert prediction.requires_grad and not target.requires_grad


def test_stop_gradient_changes_the_gradient_and_no_value():
    """Section 6.4: without sg(.) it is the gradient of the whole expression, and the teacher is still not trained."""
    teacher, student, batch = setting()
    grid = grid_of(teacher, POINTS)
    losses, gradients = {}, {}
    for stop in (True, False):
        objective = pid_of(student, teacher, POINTS, stop_gradient=stop)
        losses[stop], gradients[stop] = loss_and_gradient(student, lambda o=objective: o.loss(batch))
        assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(losses[True], losses[False])
    assert (gradients[True] - gradients[False]).norm() > 1e-3 * gradients[True].norm()
    _, plain = loss_and_gradient(student, lambda: algorithm_1(student, teacher, batch, grid, stop_gradient=False))
    assert (gradients[False] - plain).norm() < 1e-8 * plain.norm()


def test_a_teacher_without_gradient_can_only_be_stopped():
    """Black boxes, such as one in numpy."""
    teacher = FunctionDenoiser(lambda x, t, y: torch.from_numpy(x.detach().numpy() / 2), (2,))
    student = make_student(teacher, "random", MLP)
    batch = {"z": start((2,), 4, dtype=torch.float32), "i": torch.arange(4)}
    pid_of(student, teacher, 4).loss(batch).mean().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())
    objective = pid_of(student, teacher, 4, stop_gradient=False)
    with pytest.raises(PidistillError, match=r"objective.stop_gradient=false needs a teacher that can be diff") as caught:
        objective.loss(batch)
    assert "\n" not in str(caught.value)
    with torch.no_grad():  # nothing to differentiate, nothing to refuse
        assert objective.loss(batch).shape == (4,)


def sides(objective, batch):
    """(prediction, target) as the distance gets them."""
    seen, plain = [], objective.calls["distance"]
    objective.calls["distance"] = lambda *both: seen.append(both) or plain(*both)
    with torch.no_grad():
        objective.loss(batch)
    return seen[0]


@pytest.mark.parametrize("precision, least, most", [("bf16", 1e-4, 5e-2), ("fp16", 1e-5, 5e-3), ("fp32", 0, 0)])
def test_teacher_precision_changes_the_target_alone(precision, least, most):
    teacher, student, batch = setting(torch.float32)
    prediction, target = sides(pid_of(student, teacher, POINTS), batch)
    same, other = sides(pid_of(student, teacher, POINTS, teacher_precision=precision), batch)
    assert torch.equal(prediction, same) and other.dtype == torch.float32
    assert least <= (other - target).abs().max() <= most


def test_teacher_precision_holds_under_the_students():
    """`fp32` keeps the teacher out of the run's autocast; without the option it is in."""
    teacher, student, batch = setting(torch.float32)
    x, t, y = batch["z"] / 80, torch.ones(6), batch["labels"]
    plain = teacher(x, t, y)
    with autocast("bf16", x.device):
        assert torch.equal(pid_of(student, teacher, POINTS, teacher_precision="fp32").call_teacher(x, t, y), plain)
        assert not torch.equal(pid_of(student, teacher, POINTS).call_teacher(x, t, y), plain)


def test_labels_reach_student_and_teacher():
    teacher, student, batch = setting()
    sides = [pid_residual(student, teacher, batch["z"], batch["i"], grid_of(teacher, POINTS), Upwind(), y)
             for y in (batch["labels"], (batch["labels"] + 1) % 3)]
    for a, b in zip(*sides):
        assert bool(((a - b).flatten(1).abs().amax(1) > 1e-6).all())


def test_draws_cover_the_grid_and_have_the_noise_of_t_max():
    teacher, student, _ = setting(torch.float32)
    objective = pid_of(student, teacher, 5)
    samples = [objective.draw(stream(0, 0, k)) for k in range(400)]
    counts = np.bincount([sample["i"] for sample in samples], minlength=5)
    assert len(counts) == 5 and counts.min() > 50  # 80 expected: the last point is drawn too
    assert np.bincount([sample["labels"] for sample in samples], minlength=3).min() > 100
    z = np.stack([sample["z"] for sample in samples])
    assert z.dtype == np.float32 and z.shape == (400, *SHAPE)
    assert z.std() == pytest.approx(teacher.t_max, rel=0.02) and abs(z.mean()) < 2


def test_balance_divides_each_loss_by_its_own_magnitude():
    teacher, student, batch = setting()
    e, g = loss_and_gradient(student, lambda: pid_of(student, teacher, POINTS).loss(batch))
    for p, floor in ((0.5, 1e-3), (1.0, 0.1)):
        objective = pid_of(student, teacher, POINTS, balance=p, floor=floor)
        balanced, _ = loss_and_gradient(student, lambda o=objective: o.loss(batch))
        torch.testing.assert_close(balanced, e / (e + floor) ** p)
    # The divisor is a constant: with a large floor the gradient is only scaled.
    _, h = loss_and_gradient(student, lambda: pid_of(student, teacher, POINTS, balance=1.0, floor=1e9).loss(batch))
    torch.testing.assert_close(h * 1e9, g, rtol=1e-6, atol=1e-9)


def test_student_teacher_and_distance_run_compiled_and_nothing_else_changes(monkeypatch):
    teacher, student, batch = setting()
    objective, names_of_compiled, called = pid_of(student, teacher, POINTS, distance="l1"), [], []
    plain, keys = objective.loss(batch), [*student.state_dict()]

    def compiler(target, what, **options):
        names_of_compiled.append(what)
        return target if isinstance(target, torch.nn.Module) else lambda *args: (called.append(what), target(*args))[1]

    monkeypatch.setattr(setup, "try_compile", compiler)
    setup.compile_objective(objective, load_config(DistillConfig, "digits", {"compile": "default"}), torch.device("cpu"))
    assert names_of_compiled == ["the student's network", "the teacher", "the distance"]
    assert torch.equal(objective.loss(batch), plain) and called == ["the teacher", "the distance"]
    assert objective.networks == {"student": student} and [*student.state_dict()] == keys
    assert objective.calls.keys() == {"teacher", "distance"} and not objective.copies


def test_distance_and_scheme_are_options():
    teacher, student, batch = setting()
    losses = [pid_of(copy.deepcopy(student), teacher, POINTS, distance=d).loss(batch).detach()
              for d in ("l2", "l1", {"name": "pseudo_huber", "c": 0.1})]
    assert not torch.allclose(losses[0], losses[1]) and not torch.allclose(losses[0], losses[2])
    assert isinstance(build_from_config("distances", "l2"), L2)


@pytest.mark.parametrize("options, words", [
    ({"balance": 1.5}, "objective.balance"), ({"balance": -1}, "objective.balance"), ({"floor": 0}, "objective.floor"),
    ({"distance": "l3"}, "choices: features, l1, l2"), ({"scheme": "downwind"}, "upwind"), ({"distance": {"c": 1}}, "name"),
    ({"distance": {"name": "l2", "c": 1}}, "option")])
def test_bad_options_are_refused(options, words):
    teacher, student, _ = setting()
    with pytest.raises(PidistillError, match=words):
        pid_of(student, teacher, 5, **options)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "trajectory"])
def test_students_of_another_form_are_refused(form):
    teacher = tiny_teacher()
    with pytest.raises(PidistillError, match=rf"^PID trains the trajectory of Eq. \(7\); the student's form is {form}$"):
        pid_of(make_student(teacher, form=form), teacher, 5)


@pytest.mark.parametrize("scheme", list_members("schemes"))
def test_a_scheme_says_itself_whether_blocks_may_be_computed_again(scheme, monkeypatch):
    teacher, student, _ = setting()
    given, member = Setup(student, teacher, grid_of(teacher, 5), recompute=True), find_member("schemes", scheme)
    assert member.recomputable == (scheme != "autodiff")
    for recomputable in (member.recomputable, True, False):
        monkeypatch.setattr(member, "recomputable", recomputable)
        if recomputable:
            PID(given, scheme=scheme)
        else:
            with pytest.raises(PidistillError, match=f"^train.recompute=true does not go with objective.scheme={scheme}, "):
                PID(given, scheme=scheme)
        pid_of(student, teacher, 5, scheme=scheme)  # without train.recompute it may be either


@pytest.mark.parametrize("scheme", list_members("schemes"))
def test_grids_that_are_too_small_for_the_scheme_are_refused(scheme):
    teacher, student, _ = setting()
    least = build_from_config("schemes", scheme).points
    pid_of(student, teacher, least, scheme=scheme)
    if least > 2:  # with one point there is no grid at all
        words = f"the scheme {scheme} needs at least {least} grid points, got grid.points=2"
        with pytest.raises(PidistillError, match=words):
            pid_of(student, teacher, 2, scheme=scheme)


def test_the_schemes_are_different_losses():
    teacher, student, batch = setting()
    losses = [pid_of(student, teacher, POINTS, scheme=scheme).loss(batch).detach()
              for scheme in list_members("schemes")]
    assert len(losses) >= 4
    for n, a in enumerate(losses):
        assert bool(a.isfinite().all()) and not any(torch.allclose(a, b, rtol=1e-6) for b in losses[:n])


def test_a_scheme_says_what_it_needs(teacher, monkeypatch):
    class Bare:
        order, points = 1, 2

    monkeypatch.setattr("pidistill.objectives.pid.build_from_config", lambda family, config: Bare())
    with pytest.raises(PidistillError, match="the scheme bare does not say its `recomputable`"):
        PID(Setup(make_student(teacher), teacher, grid_of(teacher, 5)))


def narrow(prediction):
    return lambda F, z, i, t, t_max: StudentSide(F(t[i])[0], t[i], prediction(F(t[i])[0]))


@pytest.mark.parametrize("prediction", [lambda x: x[:, :, :1], lambda x: x[:, :, :1, :1], lambda x: x[:1], lambda x: x[0]])
def test_both_sides_must_be_of_one_shape(prediction):
    """A scheme of the user's own, whose prediction would be broadcast against the target."""
    teacher, student, batch = setting()
    with pytest.raises(PidistillError, match=r"for noise of \(6, 1, 8, 8\) the student's side of Eq. \(11\) has the shape"):
        pid_residual(student, teacher, batch["z"], batch["i"], grid_of(teacher, POINTS), narrow(prediction), batch["labels"])


def test_a_target_of_another_shape_is_refused():
    """Also of a teacher that no denoiser wraps."""
    teacher, student, batch = setting()
    flat = lambda x, t, labels: teacher(x, t, labels).mean((2, 3), keepdim=True)
    with pytest.raises(PidistillError, match=r"and the teacher's \(6, 1, 1, 1\)"):
        pid_residual(student, flat, batch["z"], batch["i"], grid_of(teacher, POINTS), Upwind(), batch["labels"])
