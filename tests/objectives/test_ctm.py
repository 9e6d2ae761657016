"""CTM against plain transcriptions of its paper's losses; its times, phases, options and refusals."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import Preconditioned
from pidistill.models.student_init import make_student
from pidistill.objectives.base import Setup, check_contract
from pidistill.objectives.ctm import CTM
from tests.helpers import SHAPE, draw, grid_of, tiny_teacher
from tests.models.test_preconditioning import SPECS
from tests.objectives.test_consistency import IMAGES, POINTS, batch_of, close, double, gradient, setup_of

TWO = {"extension": {"times": 2}}


def jumps_of(**options) -> CTM:
    return CTM(setup_of("jump", **TWO), **options)


def g(student, x, t, s, labels):
    """The teacher's preconditioning (EDM's) of the student's network, which is told both times."""
    sd, column = student.sigma_data, t[:, None, None, None]
    F = student.net(x / (column**2 + sd**2).sqrt(), torch.stack([t.log() / 4, s.log() / 4], dim=1), labels)
    return sd**2 / (column**2 + sd**2) * x + column * sd / (column**2 + sd**2).sqrt() * F


def G(student, x, t, s, labels):
    """Kim et al. (2024), Eq. 5: G = (s/t) x + (1 - s/t) g."""
    ratio = (s / t)[:, None, None, None]
    return ratio * x + (1 - ratio) * g(student, x, t, s, labels)


def times_of(objective, batch, h):
    grid = grid_of(objective.networks["student"], POINTS).t
    return [grid[batch["i"] + k] for k in range(h + 1)], grid[batch["j"]]


# The mathematics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("step", [0, 1])
def test_the_soft_consistency_loss_is_that_of_the_paper(solver, step):
    """d(G-(G(x_t, t, s), s, 0), G-(G-(Solver(x_t, t, u), u, s), s, 0)), the solver's walk along the grid, 0 at eps."""
    objective = double(jumps_of(solver=solver, dsm=0.0, ode_steps=5))
    h = objective.count_intervals(step)
    batch = batch_of(objective, step=step)
    y, labels, student, average = batch["y"], batch["labels"], objective.networks["student"], objective.copies["target"]
    column, D = lambda t: t[:, None, None, None], objective.calls["teacher"]
    ts, s = times_of(objective, batch, h)
    eps = torch.full_like(s, student.t_min)
    x_t = y + column(ts[0]) * batch["n"]
    with torch.no_grad():
        x = x_t
        for a, b in pairwise(ts):
            slope = (x - D(x, a, labels)) / column(a)
            if solver == "heun":
                guess = x + column(b - a) * slope
                slope = (slope + (guess - D(guess, b, labels)) / column(b)) / 2
            x = x + column(b - a) * slope
        target = G(average, G(average, x, ts[-1], s, labels), s, eps, labels)
    estimate = G(average, G(student, x_t, ts[0], s, labels), s, eps, labels)
    plain = (estimate - target).square().mean((1, 2, 3))
    close(objective.loss(batch, step), plain)
    close(gradient(objective, objective.loss(batch, step).mean()), gradient(objective, plain.mean()))


@pytest.mark.parametrize("weighting", ["none", "edm"])
def test_the_denoising_loss_is_that_of_the_paper(weighting):
    """|y - g(x_t, t, t)|^2; the authors' code weights it as EDM does."""
    objective = double(jumps_of(dsm=3.0, dsm_weighting=weighting))
    batch = batch_of(objective)
    r, sd = batch["r"], objective.networks["student"].sigma_data
    x = batch["y"] + r[:, None, None, None] * batch["m"]
    error = (batch["y"] - g(objective.networks["student"], x, r, r, batch["labels"])).square().mean((1, 2, 3))
    plain = error * ((r**2 + sd**2) / (r * sd) ** 2 if weighting == "edm" else 1)
    close(objective.denoise(batch), plain)
    without = double(jumps_of(dsm=0.0))
    close(objective.loss(batch) - without.loss(batch), 3 * plain)


def test_the_adversarial_losses_are_the_hinge_s():
    """max(0, 1 - d(y)) + max(0, 1 + d(est)) for the discriminator, - d(est) for the student."""
    objective = double(jumps_of(adversarial=0.3, dsm=0.0, r1=0.7))
    student, judge, average = *objective.networks.values(), objective.copies["target"]
    for p in judge.parameters():
        p.data *= 3  # away from the region where both hinges are open
    batch = batch_of(objective, number=1)
    y, labels = batch["y"].requires_grad_(), batch["labels"]
    (t, *_), s = times_of(objective, batch, 0)
    jumped = G(student, y + t[:, None, None, None] * batch["n"], t, s, labels)
    estimate = G(average, jumped, s, torch.full_like(s, student.t_min), labels)
    slope, = torch.autograd.grad(judge(y, labels).sum(), y, create_graph=True)
    plain = (1 - judge(y, labels)).clamp(min=0) + (1 + judge(estimate.detach(), labels)).clamp(min=0)
    plain = plain + 0.35 * slope.square().sum((1, 2, 3))
    close(objective.discriminate(batch), plain)
    close(gradient(objective, objective.discriminate(batch).mean(), "discriminator"),
          gradient(objective, plain.mean(), "discriminator"))
    without = double(jumps_of(dsm=0.0))
    close(objective.loss(batch) - without.loss(batch), -0.3 * judge(estimate, labels))
    close(gradient(objective, objective.loss(batch).mean()) - gradient(without, without.loss(batch).mean()),
          gradient(objective, -0.3 * judge(estimate, labels).mean()))


# Draws ---------------------------------------------------------------------------------------------------------------------


def test_the_teacher_goes_one_to_all_steps_equally_often():
    objective = jumps_of(ode_steps=5)
    found = [objective.count_intervals(step) for step in range(500)]
    assert set(found) == {1, 2, 3, 4, 5} and all(abs(found.count(h) - 100) <= 2 for h in range(1, 6))
    whole = jumps_of()
    assert max(whole.count_intervals(step) for step in range(200)) == POINTS - 1  # fewer than 17


@pytest.mark.parametrize("step", range(4))
def test_times_are_in_the_order_of_the_paper(step):
    """T >= t > u >= s >= eps, t and s uniform where they can be."""
    objective = jumps_of(ode_steps=5)
    batch, h = draw(objective, range(2000), step=step), objective.count_intervals(step)
    i, j = batch["i"].numpy(), batch["j"].numpy()
    assert i.min() == 0 and i.max() == POINTS - 1 - h and np.all(j >= i + h) and j.max() == POINTS - 1
    assert np.bincount(i).min() > 2000 / (POINTS - h) / 2
    late = j[i == 0]
    assert set(late.tolist()) == set(range(h, POINTS))
    assert torch.equal(objective.times(batch), objective.grid.t[batch["i"]])


def test_levels_of_the_denoising_loss_are_half_lognormal_and_half_high():
    """ln r ~ N(-1.2, 1.2^2), or (T^(1/rho) + x (eps^(1/rho) - T^(1/rho)))^rho with x uniform in 0 ... 0.7."""
    objective = jumps_of()
    r = draw(objective, range(4000))["r"].numpy()
    lowest = (80 ** (1 / 7) + 0.7 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    high = lambda t: (80 ** (1 / 7) - t ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7)) / 0.7
    below = lambda t: (0.5 + 0.5 * math.erf((math.log(t) + 1.2) / (1.2 * math.sqrt(2))) +
                       (1 - high(t) if t > lowest else 0)) / 2
    for t in (0.1, 0.3, 1.0, 5.0, 30.0):
        assert np.mean(r < t) == pytest.approx(below(t), abs=0.03)
    teacher = Preconditioned(tiny_teacher().model, SHAPE, 3, preconditioning=SPECS["epsilon"], t_min=0.1, t_max=20,
                             net_spec=tiny_teacher().net_spec)
    student = make_student(teacher, form="jump", **TWO)
    known = CTM(Setup(student, teacher, grid_of(teacher, POINTS), IMAGES))
    assert np.isin(draw(known, range(50))["r"].numpy(), teacher.times.numpy()).all()


# Phases and options --------------------------------------------------------------------------------------------------------


def test_the_discriminator_begins_with_the_adversarial_loss():
    objective = jumps_of(adversarial=1.0, adversarial_start=5, discriminator_optimizer={"lr": 1e-3})
    check_contract(objective)
    student, judge = objective.phases()
    assert (judge.first, judge.trains, student.first) == (5, ("discriminator",), 0)
    assert judge.optimizer == {"name": "adam", "lr": 1e-3, "betas": (0.0, 0.99), "weight_decay": 0.0}
    batch = draw(objective, range(3), step=4)
    assert torch.equal(objective.loss(batch, 4), jumps_of().loss(batch, 4))
    batch = draw(objective, range(3), step=5)
    assert not torch.equal(objective.loss(batch, 5), jumps_of().loss(batch, 5))
    assert [phase.name for phase in jumps_of().phases()] == ["student"]
    assert jumps_of().networks.keys() == {"student"}


def test_the_discriminator_is_as_wide_as_asked_for():
    count = lambda width: sum(p.numel() for p in jumps_of(adversarial=1.0, discriminator_width=width)
                              .networks["discriminator"].parameters())
    assert count(16) > 3 * count(8)


def test_options_change_the_loss():
    plain = jumps_of(dsm=0.0)
    batch = draw(plain, range(4))
    for options in ({"solver": "euler"}, {"distance": "l1"}, {"ode_steps": 1}):
        assert not torch.allclose(jumps_of(dsm=0.0, **options).loss(batch, 0), plain.loss(batch, 0), rtol=1e-3)
    assert plain.followers["target"].rate(3) == 0.999 and jumps_of(mu=0.5).followers["target"].rate(3) == 0.5
    mirrored = draw(jumps_of(flip=True), range(50))["y"]
    assert not torch.equal(mirrored, draw(jumps_of(), range(50))["y"])


# Refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"mu": 1.0}, {"ode_steps": 0}, {"dsm": -1.0}, {"adversarial": -1.0}, {"r1": -1.0},
                                     {"adversarial_start": -1}, {"discriminator_width": 0}], ids=str)
def test_wrong_options_are_one_line(options):
    with pytest.raises(PidistillError, match=r"objective\..*must be|must be at least") as raised:
        jumps_of(**options)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_trained_is_one_line():
    with pytest.raises(PidistillError, match=r"ctm trains jumps G\(x, t, s\); the student's form is consistency"):
        CTM(setup_of("consistency"))
    with pytest.raises(PidistillError, match="ctm needs a network that is told two times, t and s, and this one is told"):
        CTM(setup_of("jump"))
    with pytest.raises(PidistillError, match="the objective ctm needs images"):
        CTM(setup_of("jump", data=None, **TWO))
    edm2 = {"name": "edm2_unet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    with pytest.raises(PidistillError, match="the network edm2_unet has no option times; networks that have"):
        make_student(tiny_teacher(edm2), **CTM.plan_student(tiny_teacher(edm2), {}, None))
