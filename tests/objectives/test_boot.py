"""BOOT against a plain transcription of its paper; what each option does; a run that is left and goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import FunctionDenoiser, Preconditioned
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Setup
from pidistill.objectives.boot import BOOT
from tests.helpers import CLASSES, MLP, SHAPE, draw, grid_of, shake, tiny_teacher
from tests.mixtures import QUICK, measure_gain
from tests.models.test_preconditioning import SPECS
from tests.runs import check_resumption

POINTS = 12


def boot(teacher=None, **options) -> BOOT:
    """Over a student that is away from its teacher."""
    teacher = teacher or tiny_teacher()
    student = shake(make_student(teacher, form="signal"), seed=1, scale=0.03)
    return BOOT(Setup(student, teacher, grid_of(teacher, POINTS)), **options)


def in_float64(objective: BOOT, count: int = 6, **values):
    for module in (objective.networks["student"], objective.calls["teacher"]):
        module.double()
    batch = draw(objective, range(count)) | values
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def transcribe(objective: BOOT, batch, beta: float, solver: str = "euler", step: int = 1) -> torch.Tensor:
    """The paper's losses, with alpha = 1, sigma = t, lambda = -ln(alpha/sigma) = ln t, sample by sample."""
    samples = zip(batch["z"][:, None], batch["j"].tolist(), batch["labels"][:, None], strict=True)
    return torch.stack([transcribe_one(objective, *sample, beta, solver, step) for sample in samples])


def transcribe_one(objective: BOOT, z, j: int, label, beta: float, solver: str, step: int) -> torch.Tensor:
    T, times = 80.0, objective.grid.t.tolist()
    epsilon, s, t = z / T, times[j], times[max(j - step, 0)]
    student, teacher = objective.networks["student"], objective.calls["teacher"]
    signal = lambda at: student.F(z, torch.tensor([at], dtype=torch.float64), label)
    f = lambda x, at: teacher(x, torch.tensor([at], dtype=torch.float64), label)
    y_t, decay = signal(t).detach(), np.exp(np.log(s) - np.log(t))  # exp(lambda_s - lambda_t)
    with torch.no_grad():
        slope = y_t - f(y_t + t * epsilon, t)                       # dy/dlambda
        y_s = (1 - decay) * (y_t - slope) + decay * y_t
        if solver == "heun":                                        # in t, where dy/dt = slope/t
            slope_s = y_s - f(y_s + s * epsilon, s)
            y_s = y_t + (s - t) * (slope / t + slope_s / s) / 2
        end = f(z, T)
    bootstrapping = ((signal(s) - y_s) ** 2).mean() / (1 - decay) ** 2
    return bootstrapping + beta * ((signal(T) - end) ** 2).mean()


@pytest.mark.parametrize("options", [{}, {"boundary": 0.7}, {"boundary": 0.0}, {"solver": "heun"}, {"step": 3}])
def test_the_loss_and_its_gradient_are_those_of_the_paper(options):
    objective = boot(**options)
    batch = in_float64(objective)
    plain = transcribe(objective, batch, options.get("boundary", 0.1), options.get("solver", "euler"),
                       options.get("step", 1))
    ours = objective.loss(batch)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    parameters = [*objective.networks["student"].parameters()]
    grads = [torch.cat([g.flatten() for g in torch.autograd.grad(loss.mean(), parameters)]) for loss in (ours, plain)]
    assert ((grads[0] - grads[1]).norm() / grads[1].norm()).item() < 1e-5 and grads[1].norm() > 1e-6


def test_the_division_by_the_step_keeps_the_loss_as_large():
    """On twice, and four times, as many points the loss of a student away from the teacher stays of a size."""
    teacher, losses = tiny_teacher(), []
    student = shake(make_student(teacher, form="signal"), seed=1, scale=0.03)
    for points in (40, 80, 160):
        objective = BOOT(Setup(student, teacher, grid_of(teacher, points)), boundary=0.0)
        losses.append(objective.loss(draw(objective, range(200))).mean().item())
    assert max(losses) < 1.3 * min(losses)


def test_the_exact_signal_has_no_loss_of_bootstrapping():
    """Of one Gaussian, to the order of the solver: y_t = x_t - (t/T) z in closed form."""
    teacher = load_teacher("gaussian:2,std=0.5").double()
    student = make_student(teacher, "random", MLP, form="signal")
    student.F = lambda z, t, labels=None: teacher.exact(z, t) - (t / teacher.t_max)[:, None] * z
    errors = {}
    for solver in ("euler", "heun"):
        for points in (65, 129):
            objective = BOOT(Setup(student, teacher, grid_of(teacher, points)), boundary=0.0, solver=solver)
            j = torch.arange(points // 4, points - 1, points // 8)
            z = torch.randn(len(j), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80
            errors[solver, points] = objective.loss({"z": z, "j": j}).sqrt().mean().item()
    for solver, order in (("euler", 1), ("heun", 2)):
        assert np.log2(errors[solver, 65] / errors[solver, 129]) == pytest.approx(order, abs=0.35)


# Options -------------------------------------------------------------------------------------------------------------------


def test_every_option_changes_the_loss():
    batch = draw(boot(), range(6))
    losses = [boot(**options).loss(batch) for options in (
        {}, {"boundary": 1.0}, {"step": 2}, {"solver": "heun"}, {"distance": "l1"}, {"teacher_precision": "bf16"})]
    for k, loss in enumerate(losses):
        assert all(not torch.equal(loss, other) for other in losses[:k])


def test_all_times_but_t_are_learnt_whatever_the_step():
    for step in (1, 5):
        objective = boot(step=step)
        batch = draw(objective, range(300))
        assert sorted({*batch["j"].tolist()}) == [*range(1, POINTS)]
        assert {*objective.times(batch).tolist()} == {*objective.grid.t[:POINTS - step].tolist()}


@pytest.mark.parametrize("options, words", [
    ({"boundary": -1}, "boundary must be 0 or more"), ({"step": 0}, "step must be from 1 to 11"), ({"step": 12}, "got 12"),
    ({"distance": "l3"}, "distance")])
def test_what_means_nothing_is_one_line(options, words):
    with pytest.raises(PidistillError, match=words) as caught:
        boot(**options)
    assert "\n" not in str(caught.value)


def test_another_form_is_one_line():
    teacher = tiny_teacher()
    with pytest.raises(PidistillError, match="BOOT trains a student of the form signal; this one is of the form trajectory"):
        BOOT(Setup(make_student(teacher), teacher, grid_of(teacher, POINTS)))


# Teachers ------------------------------------------------------------------------------------------------------------------


def test_a_black_box_is_asked_at_levels_that_it_knows():
    known = Preconditioned(tiny_teacher().model, SHAPE, CLASSES, preconditioning=SPECS["epsilon"], t_min=0.1, t_max=20)
    asked = []
    box = FunctionDenoiser(lambda x, t, y: (asked.extend(t.tolist()), x.detach() * 0.5)[1], SHAPE, CLASSES,
                           t_min=known.t_min, t_max=known.t_max)
    box.times = known.times
    student = make_student(box, "random", MLP, form="signal")
    objective = BOOT(Setup(student, box, grid_of(box, POINTS)), solver="heun")
    objective.loss(draw(objective, range(50))).mean().backward()
    assert np.isin(asked, known.times.float().numpy()).all() and len({*asked}) > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_a_mixture(tmp_path, seed):
    before, after = measure_gain(tmp_path / "run", QUICK | {
        "objective": {"name": "boot"}, "train.steps": 1000, "train.seed": seed})
    assert after < 0.12 and after < before / 4


def test_a_run_that_was_left_goes_on_bit_for_bit(tmp_path):
    check_resumption(tmp_path, {"objective": {"name": "boot", "solver": "heun", "step": 2}})
