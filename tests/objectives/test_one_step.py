"""Diff-Instruct and SiD against plain transcriptions of their papers; their options; runs that are left and go on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.registry import find_member
from pidistill.jobs.build_objective import build_objective
from pidistill.models.denoiser import FunctionDenoiser, Preconditioned
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Setup, check_contract
from pidistill.objectives.diff_instruct import DiffInstruct
from pidistill.objectives.sid import SiD
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.helpers import CLASSES, MLP, SHAPE, draw, grid_of, shake, tiny_teacher
from tests.mixtures import QUICK, measure_gain
from tests.models.test_preconditioning import SPECS
from tests.runs import check_resumption

NAMES = ("diff_instruct", "sid")
T, SIGMA_DATA = 80.0, 0.5
NET_OF_FAKE = {"name": "mlp", "width": 8}


def one_step(name: str, teacher=None, **options):
    """Over a student, and a fake, that are away from the teacher."""
    teacher, member = teacher or tiny_teacher(), find_member("objectives", name)
    student = shake(make_student(teacher, **member.plan_student(teacher, options, None)), seed=1, scale=0.03)
    objective = member(Setup(student, teacher, grid_of(teacher, 12)), **options)
    shake(objective.networks["fake"], seed=2, scale=0.03)
    return objective


def in_float64(objective, number: int, count: int = 5) -> dict[str, torch.Tensor]:
    """Draws of a phase, with all networks in float64."""
    for module in (*objective.networks.values(), objective.calls["teacher"]):
        module.double()
    batch = draw(objective, range(count), number=number)
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def draw_plainly(objective, batch, level: float) -> torch.Tensor:
    """G(z) = D(sigma_init z, sigma_init), EDM's Eq. (7), with the student's raw network; the batch has T z."""
    x = batch["z"] / T * level
    variance = level**2 + SIGMA_DATA**2
    c_noise = torch.full((len(x),), np.log(level) / 4, dtype=torch.float64)
    F = objective.networks["student"].net(x / variance**0.5, c_noise, batch["labels"])
    return SIGMA_DATA**2 / variance * x + level * SIGMA_DATA / variance**0.5 * F


def compare(objective, loss: torch.Tensor, plain: torch.Tensor) -> None:
    """Gradients in the student, within 1e-5 relative."""
    parameters = [*objective.networks["student"].parameters()]
    ours, theirs = (torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]) for value in (loss, plain))
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5 and theirs.norm() > 1e-6


# The mathematics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [2.5, 1.0])
def test_the_gradient_is_that_of_diff_instruct(level):
    """Luo et al. (2023), Section 3.2: E w(t) [s_fake(x_t, t) - s_teacher(x_t, t)]^T dx_t/dtheta, with w(t) = t^2."""
    objective = one_step("diff_instruct", init_level=level)
    batch = in_float64(objective, 1)
    t, y = batch["t"], batch["labels"]
    x_t = draw_plainly(objective, batch, level) + t[:, None, None, None] * batch["n"]
    scores = []
    for network in (objective.networks["fake"], objective.calls["teacher"]):
        with torch.no_grad():
            scores.append((network(x_t, t, y) - x_t) / t[:, None, None, None] ** 2)
    weighted = t[:, None, None, None] ** 2 * (scores[0] - scores[1])
    compare(objective, objective.correct(batch).sum(), (weighted * x_t).sum() / x_t[0].numel())


@pytest.mark.parametrize("name", NAMES)
def test_the_fake_s_loss_is_edm_s_on_the_student_s_images(name):
    objective = one_step(name)
    batch = in_float64(objective, 0)
    t = batch["t"][:, None, None, None]
    image = draw_plainly(objective, batch, 2.5).detach()
    D = objective.networks["fake"](image + t * batch["n"], batch["t"], batch["labels"])
    plain = ((t**2 + SIGMA_DATA**2) / (t * SIGMA_DATA) ** 2 * (D - image) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(objective.imitate(batch), plain, rtol=1e-9, atol=0)


# Options -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, options, number", [
    *((name, options, number) for name in NAMES for options, number in (
        ({"init_level": 1.0}, 1), ({"p_mean": 0.5}, 0), ({"p_std": 0.5}, 0), ({"warmup": 3}, 1),
        ({"teacher_precision": "bf16"}, 1), ({"fake": NET_OF_FAKE}, 0))),
    ("diff_instruct", {"p_mean": 0.5}, 1), ("sid", {"alpha": 1.0}, 1), ("sid", {"reach": 0.5}, 1)])
def test_every_option_changes_a_loss(name, options, number):
    losses = []
    for objective in (one_step(name), one_step(name, **options)):
        check_contract(objective)
        phase = objective.phases()[number].parts[0]
        losses.append(phase.loss(draw(objective, range(5), number=number), 0))
    assert not torch.allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_student_takes_turns_with_the_fake(name):
    fake, student = one_step(name).phases()
    assert (fake.name, fake.trains, student.name, student.trains) == ("fake", ("fake",), "student", ("student",))
    assert all(phase.is_due(step) for phase in (fake, student) for step in range(5))
    assert fake.optimizer["name"] == "adam" and fake.optimizer["betas"] == (0.0, 0.999)
    fake, student = one_step(name, warmup=4, fake_steps=5, fake_optimizer={"lr": 0.1}).phases()
    assert [step for step in range(20) if student.is_due(step)] == [4, 9, 14, 19] and fake.optimizer["lr"] == 0.1


@pytest.mark.parametrize("name, options, words", [
    *((name, options, words) for name in NAMES for options, words in (
        ({"init_level": 100.0}, "init_level must be a noise level of the teacher's, 0.002 to 80, got 100"),
        ({"init_level": 0.0}, "got 0.0"), ({"fake_steps": 0}, "fake_steps must be above 0"), ({"warmup": -1}, "warmup"),
        ({"p_std": 0}, "p_std must be above 0"), ({"fake": "mlpp"}, "did you mean 'mlp'"))),
    ("sid", {"reach": 1.5}, "reach must be above 0 and at most 1")])
def test_what_means_nothing_is_one_line(name, options, words):
    with pytest.raises(PidistillError, match=words) as caught:
        one_step(name, **options)
    assert "\n" not in str(caught.value)


# Students and teachers -----------------------------------------------------------------------------------------------------


def test_a_student_that_draws_elsewhere_is_one_line():
    teacher = tiny_teacher()
    for student in (make_student(teacher), make_student(teacher, form="denoiser", drawing_time=1.0)):
        with pytest.raises(PidistillError, match=f"of the form {student.form} and draws at {student.drawing_time:g}"):
            DiffInstruct(Setup(student, teacher, grid_of(teacher, 12)), init_level=2.5)


def test_a_teacher_of_low_noise_needs_a_level_of_its_own():
    teacher = tiny_teacher(t_min=0.01, t_max=2.0)
    with pytest.raises(PidistillError, match=r"0\.01 to 2, got 2\.5"):
        one_step("sid", teacher)
    assert one_step("sid", teacher, init_level=1.5).networks["student"].drawing_time == 1.5


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_those_that_the_teacher_knows(name):
    teacher = Preconditioned(tiny_teacher().model, SHAPE, CLASSES, preconditioning=SPECS["epsilon"], t_min=0.1, t_max=20)
    objective = one_step(name, teacher)
    for number in (0, 1):
        t = draw(objective, range(100), number=number)["t"].double().numpy()
        assert np.isin(t, teacher.times.float().double().numpy()).all() and len(np.unique(t)) > 5


@pytest.mark.parametrize("conditional", [True, False])
def test_a_black_box_teaches_diff_instruct_and_not_sid(conditional):
    box = FunctionDenoiser(lambda x, t, y: (x / (1 + t[:, None, None, None] ** 2)).detach(), SHAPE, 3 * conditional)
    student = make_student(box, "random", MLP, form="denoiser", drawing_time=2.5)
    setup = Setup(student, box, grid_of(box, 12))
    with pytest.raises(PidistillError, match=r"set objective\.fake"):
        DiffInstruct(setup)
    objective = DiffInstruct(setup, fake=MLP)
    objective.correct(draw(objective, range(3), number=1)).sum().backward()
    with pytest.raises(PidistillError, match="the objective sid needs a teacher that can be differentiated; the teacher"):
        SiD(setup, fake=MLP)


# Runs ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_left_goes_on_bit_for_bit(tmp_path, name):
    check_resumption(tmp_path, {"objective": {"name": name, "fake": MLP, "warmup": 1, "fake_steps": 2}})


@pytest.mark.parametrize("name", NAMES)
def test_a_run_tells_whether_it_converges(name, capsys):
    objective = one_step(name)
    found = objective.diagnose(objective.networks["student"])
    assert found.keys() == {"rms_to_teacher", "spread", "fake/student", "fake/teacher"}
    assert found["spread"] < 0.8 and "Lower optimizer.lr, or let the fake follow better" in capsys.readouterr().err


def test_a_run_draws_from_its_level(tmp_path):
    config = load_config(DistillConfig, "default", QUICK | {
        "objective": {"name": "diff_instruct", "init_level": 1.0, "fake": "mlp"}, "out": str(tmp_path)})
    student = build_objective(config, load_teacher(config.teacher)).networks["student"]
    z = torch.randn(3, 2) * 80
    assert student.drawing_time == 1.0
    torch.testing.assert_close(student.generate(z), student(z / 80, 1.0), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name, options, bound, factor, seed", [
    ("diff_instruct", {}, 0.1, 4, 0), ("diff_instruct", {}, 0.1, 4, 1),
    ("sid", {"alpha": 1.0}, 0.2, 2, 0), ("sid", {"alpha": 1.0}, 0.2, 2, 1)])
def test_they_learn_a_mixture(tmp_path, name, options, bound, factor, seed):
    """The teacher has no network: the fake begins at random, as the student does. The bounds are above what was measured."""
    optimizer = {"lr": 1e-2, "betas": (0.9, 0.99), "decay": "constant", "warmup": 0}
    before, after = measure_gain(tmp_path / "run", QUICK | {
        "objective": {"name": name, "fake": {"name": "mlp", "width": 64}, "fake_optimizer": optimizer, "fake_steps": 2,
                      "warmup": 100, **options},
        "optimizer.name": "adam", "optimizer.lr": 1e-2, "optimizer.warmup": 100, "train.steps": 1200, "ema": 0.98,
        "train.seed": seed})
    assert after < bound and after < before / factor
