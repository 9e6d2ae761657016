"""The analytic teachers against their ODE and their definition."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.samplers.heun import heun
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.gaussian import Gaussian, gaussian
from tests.helpers import gaussian64, grid_of, start


def test_exact_solution_satisfies_the_ode():
    """dx/dt by central difference against (x - D)/t, Eq. (6), and x(T) = z."""
    teacher, z = gaussian64((3,), mean=-0.4, std=0.2), start((3,))
    torch.testing.assert_close(teacher.exact(z, teacher.t_max), z, rtol=1e-14, atol=1e-14)
    for t in (60.0, 5.0, 0.3, 0.01):
        h = 1e-5 * t
        slope = (teacher.exact(z, t + h) - teacher.exact(z, t - h)) / (2 * h)
        x = teacher.exact(z, t)
        torch.testing.assert_close(slope, (x - teacher(x, t)) / t, rtol=1e-6, atol=1e-8)


def test_exact_solution_ends_in_the_data():
    """z ~ N(0, T^2) lands on N(mu, s^2): the map is the optimal transport between the two."""
    teacher, z = gaussian64((1,), mean=0.3, std=0.5), start((1,), batch=20000)
    x = teacher.exact(z, 0.0)
    assert x.mean().item() == pytest.approx(0.3, abs=0.02) and x.std().item() == pytest.approx(0.5, rel=0.02)


def test_mixture_denoiser_is_the_posterior_mean():
    """Against Bayes' rule on a fine grid of images y: p(y | x) ~ p(y) N(x; y, t^2)."""
    means = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [0.4, -0.8]], dtype=torch.float64)
    scales, weights = torch.tensor([0.2, 0.4, 0.3], dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    teacher = Gaussian(means, scales, weights)
    axis = torch.linspace(-4, 4, 321, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    density = (weights * scales**-2 * (-(y[:, None] - means).square().sum(2) / (2 * scales**2)).exp()).sum(1)
    x = torch.tensor([[0.1, 0.3], [-0.8, 0.5], [1.0, -1.0]], dtype=torch.float64)
    for t in (0.3, 1.0, 10.0):
        w = density * (-(x[:, None] - y).square().sum(2) / (2 * t**2)).exp()
        torch.testing.assert_close(teacher(x, t), w @ y / w.sum(1, keepdim=True), rtol=0, atol=1e-6)


def test_labels_choose_the_component():
    teacher = gaussian("2,modes=4,std=0.1,classes")
    assert teacher.num_classes == 4
    x, y = torch.randn(4, 2), torch.arange(4)
    for t in (0.5, 80.0):
        expected = teacher.means + (x - teacher.means) * 0.01 / (0.01 + t**2)
        torch.testing.assert_close(teacher(x, t, y), expected)
    z = start((2,), 4, dtype=torch.float32)
    torch.testing.assert_close(teacher.exact(z, 0.002, y), teacher.means, rtol=0, atol=0.5)
    with pytest.raises(PidistillError, match="give labels"):
        teacher.exact(z, 1.0)


def test_heun_lands_on_the_modes_of_a_mixture():
    teacher = gaussian("2,modes=8,std=0.05")
    *_, (_, x) = heun(teacher, start((2,), 64, dtype=torch.float32), grid_of(teacher, 40).t)
    nearest = (x[:, None] - teacher.means).norm(dim=2).amin(dim=1)
    assert nearest.median() < 0.1 and x.norm(dim=1).mean().item() == pytest.approx(1, abs=0.1)


def test_sigma_data_is_the_standard_deviation_of_the_data():
    assert gaussian("2,std=0.3").sigma_data == pytest.approx(0.3)
    assert gaussian("2,modes=8,std=0.1").sigma_data == pytest.approx(math.sqrt(0.01 + 0.5), rel=1e-5)


@pytest.mark.parametrize("spec, shape, modes", [
    ("2", (2,), 1), ("1x8x8,mean=0.2,std=0.5", (1, 8, 8), 1), ("3,modes=5", (3,), 5), ("16", (16,), 1)])
def test_specs(spec, shape, modes):
    teacher = load_teacher(f"gaussian:{spec}")
    assert teacher.shape == shape and len(teacher.means) == modes and teacher.num_classes == 0


@pytest.mark.parametrize("rest", ["", "x", "2x", "0", "-1", "2,std", "2,std=0", "2,std=-1", "2,std=inf", "2,std=nan",
                                  "2,modes=0", "1,modes=2", "2,modes=1.5",
                                  "2,colour=3", "2,std=a", "2,mean=nan", "2,mean=inf", "2,a=b=c"])
def test_bad_specs_show_the_usage(rest):
    with pytest.raises(PidistillError, match="gaussian: takes SHAPE"):
        gaussian(rest)


@pytest.mark.parametrize("scale, weight", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_bad_components_are_refused(scale, weight):
    with pytest.raises(PidistillError, match="positive scale"):
        Gaussian(torch.zeros(1, 2), torch.tensor([scale]), torch.tensor([weight]))
