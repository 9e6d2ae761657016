"""Consistency distillation against a plain transcription of Algorithm 2; its schedules, options and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.image_set import ImageSet
from pidistill.jobs.stages import list_stages
from pidistill.models.student_init import make_student
from pidistill.objectives.base import Setup, check_contract
from pidistill.objectives.consistency import Consistency, count_adaptive_points
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.helpers import CLASSES, SHAPE, draw, grid_of, shake, tiny_teacher

POINTS = 12
IMAGES = ImageSet.of(torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1, torch.arange(6) % CLASSES)


def setup_of(form: str = "consistency", points: int = POINTS, data: ImageSet | None = IMAGES, **plan) -> Setup:
    """A student that is away from the teacher."""
    teacher = tiny_teacher()
    student = shake(make_student(teacher, form=form, **plan), seed=1, scale=0.03)
    return Setup(student, teacher, grid_of(teacher, points), data)


def double(objective):
    """All networks in float64, the followers away from what they follow."""
    for module in (*objective.networks.values(), *objective.copies.values(), *objective.calls.values()):
        if isinstance(module, torch.nn.Module):
            module.double()
    for copied in objective.copies.values():
        shake(copied, seed=2, scale=0.03)
    return objective


def batch_of(objective, count: int = 6, step: int = 0, number: int = 0) -> dict[str, torch.Tensor]:
    return {key: value.double() if value.is_floating_point() else value
            for key, value in draw(objective, range(count), step=step, number=number).items()}


def consistency_function(student, x, t, labels):
    """Song et al. (2023), Eq. 5 and Appendix C, with EDM's c_in and c_noise."""
    s, eps = student.sigma_data, student.t_min
    column = t[:, None, None, None]
    c_skip = s**2 / ((column - eps) ** 2 + s**2)
    c_out = s * (column - eps) / (s**2 + column**2).sqrt()
    return c_skip * x + c_out * student.net(x / (column**2 + s**2).sqrt(), t.log() / 4, labels)


def close(ours: torch.Tensor, plain: torch.Tensor, rtol: float = 1e-5) -> None:
    assert ((ours - plain).norm() / plain.norm()).item() < rtol and plain.norm() > 1e-6


def gradient(objective, loss: torch.Tensor, name: str = "student") -> torch.Tensor:
    grads = torch.autograd.grad(loss, [*objective.networks[name].parameters()], allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


# The mathematics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_loss_is_that_of_algorithm_2(solver):
    """x^ = x + (t_n - t_{n+1}) Phi(x, t_{n+1}), with Phi = (x - D)/t for Euler, and the mean slope of both ends for Heun."""
    objective = double(Consistency(setup_of(), solver=solver))
    batch = batch_of(objective)
    y, labels, noise, late, early = (batch[key] for key in ("y", "labels", "z", "t", "u"))
    column = lambda t: t[:, None, None, None]
    D = objective.calls["teacher"]
    with torch.no_grad():
        x = y + column(late) * noise
        slope = (x - D(x, late, labels)) / column(late)
        if solver == "heun":
            guess = x + column(early - late) * slope
            slope = (slope + (guess - D(guess, early, labels)) / column(early)) / 2
        target = consistency_function(objective.copies["target"], x + column(early - late) * slope, early, labels)
    plain = (consistency_function(objective.networks["student"], x, late, labels) - target).square().mean((1, 2, 3))
    close(objective.loss(batch), plain)
    close(gradient(objective, objective.loss(batch).mean()), gradient(objective, plain.mean()))


def test_draws_are_neighbours_on_the_grid_images_and_noise():
    objective = Consistency(setup_of())
    batch, grid = draw(objective, range(600)), objective.grids.list_times(POINTS)
    index = {t: n for n, t in enumerate(grid)}
    n = np.array([index[t] for t in batch["t"].tolist()])
    assert np.array_equal(grid[n + 1], batch["u"].numpy()) and objective.times(batch) is batch["t"]
    counts = np.bincount(n, minlength=POINTS - 1)
    assert len(counts) == POINTS - 1 and counts.min() > 600 / (POINTS - 1) / 2
    assert batch["z"].std().item() == pytest.approx(1, abs=0.02)
    images = torch.stack([torch.from_numpy(IMAGES.sample(k)["y"]) for k in range(6)])
    found = (batch["y"][:, None] == images).flatten(2).all(2)
    assert bool((found.sum(1) == 1).all()) and torch.equal(found.int().argmax(1) % CLASSES, batch["labels"])


def test_the_adaptive_schedule_is_that_of_appendix_c():
    """CIFAR-10's, s0 = 2 and s1 = 150 over 800,000 steps."""
    plain = lambda k, K, s0, s1: math.ceil(math.sqrt(k / K * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
    for k in (0, 1, 1000, 400_000, 799_999, 800_000):
        assert count_adaptive_points(k, 800_000, 2, 150) == plain(k, 800_000, 2, 150)
    assert [count_adaptive_points(k, 100, 2, 10) for k in (0, 100, 300)] == [2, 11, 11]
    objective = Consistency(setup_of(), schedule="adaptive", mu=0.9, s0=2, s1=20, schedule_steps=100)
    for k in (0, 50, 100):
        N = plain(k, 100, 2, 20)
        assert objective.followers["target"].rate(k) == pytest.approx(math.exp(2 * math.log(0.9) / N))
        assert set(draw(objective, range(200), step=k)["t"].tolist()) == set(objective.grids.list_times(N)[:-1].tolist())


def test_the_schedule_has_the_run_s_steps_unless_it_says():
    of = lambda **options: load_config(DistillConfig, "default", {
        "out": "x", "train.steps": 70, "objective": {"name": "consistency", **options}})
    steps = lambda config: next(iter(list_stages(config).values())).objective.get("schedule_steps")
    assert steps(of()) is None and steps(of(schedule="adaptive")) == 70
    assert steps(of(schedule="adaptive", schedule_steps=30)) == 30


# Options -------------------------------------------------------------------------------------------------------------------


def test_options_change_the_loss():
    plain = Consistency(setup_of())
    batch = draw(plain, range(4))
    for options in ({"solver": "euler"}, {"distance": "pseudo_huber"}):
        assert not torch.allclose(Consistency(setup_of(), **options).loss(batch), plain.loss(batch), rtol=1e-3)
    assert plain.followers["target"].rate(7) == 0.95
    assert Consistency(setup_of(), mu=0.5).followers["target"].rate(7) == 0.5


def test_flipped_images_are_every_other_one():
    flipped, plain = (draw(Consistency(setup_of(), flip=flip), range(200))["y"] for flip in (True, False))
    images = {IMAGES.sample(k)["y"].tobytes() for k in range(6)}
    mirrored = [np.ascontiguousarray(y.numpy()[:, :, ::-1]).tobytes() in images for y in flipped]
    assert 60 < sum(mirrored) < 140 and all(y.numpy().tobytes() in images for y in plain)


def test_an_unconditional_teacher_gets_no_labels():
    teacher = tiny_teacher(classes=0)
    objective = Consistency(Setup(make_student(teacher, form="consistency"), teacher, grid_of(teacher, POINTS), IMAGES))
    assert draw(objective, range(2)).keys() == {"y", "t", "u", "z"}
    check_contract(objective)


# Refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, said", [
    ({"mu": 1.0}, r"objective\.mu must be 0 to 1, below 1, and above 0 for the adaptive schedule, got 1"),
    ({"mu": 0.0, "schedule": "adaptive"}, r"objective\.mu must be .*, got 0"),
    ({"s0": 1}, r"objective\.s0 must be at least 2, s1 at least s0 and schedule_steps at least 1, got 1, 150 and"),
    ({"s1": 1}, r"got 2, 1 and"), ({"schedule_steps": 0}, "and 0")])
def test_wrong_options_are_one_line(options, said):
    with pytest.raises(PidistillError, match=said) as raised:
        Consistency(setup_of(), **options)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_trained_is_one_line():
    with pytest.raises(PidistillError, match="of the form consistency; the student's form is trajectory"):
        Consistency(setup_of("trajectory"))
    with pytest.raises(PidistillError, match="the objective consistency needs images: data="):
        Consistency(setup_of(data=None))
