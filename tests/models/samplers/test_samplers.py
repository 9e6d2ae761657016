"""What the samplers cost and converge to, and that the host never waits for them."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from pidistill.core.registry import find_member, list_members
from pidistill.models.grid import karras_times
from pidistill.models.samplers.base import Sampler, parse_sampler
from tests.helpers import MLP, gaussian64, start, tiny_teacher

NAMES = list_members("samplers")
STOCHASTIC = ["ddim,eta=0.7", "ddpm", "ddpm,variance=large", "heun,churn=3"]
VARIANTS = sorted({*NAMES, *STOCHASTIC, "dpm_solver_fast", "dpm_solver2", "deis2,variable=log", "deis,variable=t", "unipc2"})
# Evaluations for N steps, of which the last is to 0, and for N steps that end above.
ONE, TWO, THREE = ((lambda n, k=k: k * (n - 1) + 1, lambda n, k=k: k * n) for k in (1, 2, 3))
EVALUATIONS = {"euler": ONE, "ddim": ONE, "ddim,eta=1": ONE, "ddpm": ONE, "dpm_solver_pp": ONE, "heun": TWO,
               "heun,churn=40": TWO,
               **{f"deis{k}": ONE for k in (1, 2, 3)}, **{f"unipc{k}": ONE for k in (1, 2, 3)},
               "dpm_solver1": ONE, "dpm_solver2": TWO, "dpm_solver3": THREE, "dpm_solver_fast": ONE}


def log_times(n: int) -> torch.Tensor:
    return torch.linspace(math.log(80), math.log(0.002), n + 1, dtype=torch.float64).exp()


def discrete(**facts):
    """A random network that predicts noise at 40 levels."""
    sigmas = torch.logspace(-2, 1.5, 40, dtype=torch.float64).tolist()
    return tiny_teacher(preconditioning={"name": "epsilon", "sigmas": sigmas}, **facts)


# cost -----------------------------------------------------------------------------------------------------------------


def test_every_sampler_s_cost_is_known():
    assert {parse_sampler(text)[0].name for text in EVALUATIONS} == set(NAMES)


@pytest.mark.parametrize("text", EVALUATIONS)
def test_evaluations(text, gaussian):
    z, seen = start((2,)), []
    for n in range(1, 21) if "fast" in text else (1, 2, 3, 7, 20):
        sampler = Sampler(parse_sampler(text)[0].name, n, parse_sampler(text)[0].options)
        assert sampler.evaluations(gaussian) == EVALUATIONS[text][0](n)
        seen.clear()
        list(sampler.integrate(lambda x, t, labels: seen.append(t) or x, z, log_times(n), None, lambda k: z))
        assert len(seen) == EVALUATIONS[text][1](n) and min(seen) > 0


# convergence ----------------------------------------------------------------------------------------------------------

DEIS = [(f"deis{k},variable={variable}", k, False) for k in (1, 2, 3) for variable in ("vp", "t", "log")]


@pytest.mark.parametrize("text, order, karras", [
    ("dpm_solver1", 1, False), ("dpm_solver2", 2, False), ("dpm_solver3", 3, False), ("ddim,eta=0", 1, False),
    ("heun,churn=0", 2, False), *DEIS[:-1], ("deis3,variable=log", 3, True),  # on even log t errors of it cancel
    ("unipc1", 2, False), ("unipc2", 3, False), ("unipc3", 4, False)])
def test_order(text, order, karras, gaussian):
    """The global error at eps for N = 128 and 256, evenly spaced in log t (or Karras' times)."""
    def error(n: int) -> float:
        z, ts = start((2,)), karras_times(n + 1, 0.002, 80, 7) if karras else log_times(n)
        *_, (t, x) = parse_sampler(text)[0].integrate(gaussian, z, ts)
        return (x - gaussian.exact(z, t)).abs().max().item()

    assert math.log2(error(128) / error(256)) == pytest.approx(order, abs=0.16)


def law(text: str, n: int) -> tuple[float, float]:
    """Mean and variance of what a sampler draws, exactly: for a Gaussian its map is affine in z and in every draw.

    Row k of the batch has a unit for draw k and 0 for the others, row n one for z, and the last row none.
    """
    teacher, ts = gaussian64((1,)), log_times(n)
    z = torch.full((n + 2, 1), 0.3, dtype=torch.float64)
    z[n] += math.sqrt(0.5**2 + 80**2)
    units = torch.eye(n + 2, dtype=torch.float64)
    *_, (_, x) = parse_sampler(text)[0].integrate(teacher, z, ts, None, lambda k: units[:, k:k + 1])
    return x[-1].item(), (x[:-1] - x[-1]).square().sum().item()


@pytest.mark.parametrize("text, order", [("ddpm", 1), ("ddpm,variance=large", 1), ("ddim,eta=1", 1), ("ddim,eta=0.5", 1),
                                         ("heun,churn=10", 2), ("heun,churn=10,churn_min=0.05,churn_max=50", 2)])
def test_weak_order(text, order):
    """The variance at eps tends to the data's, s^2 + eps^2, with noise in every step; the mean is its own."""
    expected = 0.5**2 + 0.002**2
    error = []
    for n in (128, 256):
        mean, variance = law(text, n)
        assert mean == pytest.approx(0.3, abs=1e-9)
        error.append(abs(variance / expected - 1))
    assert math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.1) and error[1] < 0.06


def test_churn_noise_scales_the_variance():
    assert law("heun,churn=10,churn_noise=1.1", 64)[1] > 1.1 * law("heun,churn=10", 64)[1]


def test_without_noise_ancestral_sampling_loses_variance():
    """So the draws matter: what test_weak_order measures is no property of the mean alone."""
    *_, (_, x) = find_member("samplers", "ddpm")(gaussian64((1,)), torch.tensor([[80.0], [-80.0]]).double(), log_times(64))
    assert (x[0] - x[1]).abs() / 2 < 0.05


def test_ddim_with_eta_1_is_ddpm(gaussian):
    draw = lambda k: torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    for ts in (log_times(12), gaussian.grid_times(9), torch.tensor([80.0, 1.0, 0.0], dtype=torch.float64)):
        for (_, a), (_, b) in zip(*(parse_sampler(text)[0].integrate(gaussian, start((2,)), ts, None, draw)
                                    for text in ("ddim,eta=1", "ddpm"))):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# devices--


@functools.cache
def meta_teachers():
    return lambda x, t, labels: x * 0.5, discrete(net=MLP).to("meta")


@pytest.mark.parametrize("text", VARIANTS)
def test_the_host_never_waits(text):
    """On the meta device there is no number to read: .item(), bool(), .cpu() and the like raise."""
    z, y = torch.empty(2, 1, 8, 8, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    ts = torch.tensor([30.0, 9.0, 2.0, 0.0], dtype=torch.float64)
    for denoise in meta_teachers():
        *_, (t, x) = parse_sampler(text)[0].integrate(denoise, z, ts, y, lambda k: torch.empty_like(z))
        assert x.is_meta and x.shape == z.shape and type(t) is float


def test_meta_tensors_have_no_numbers():
    for read in (torch.Tensor.item, bool, float, torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(torch.empty(1, device="meta"))
