"""What the samplers cost, converge to and draw; how they are named; and that they suit every teacher."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.registry import member, names
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.grid import karras_times
from pidistill.models.samplers.base import STEPS, Sampler, parse_sampler, sample_teacher
from pidistill.models.samplers.deis import integrate_lagrange
from pidistill.models.teachers.base import load_teacher
from tests.helpers import MLP, gaussian64, start, tiny_teacher

NAMES = names("samplers")
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


def test_fewer_levels_are_fewer_evaluations():
    """Several steps that snap to one noise level are one."""
    teacher = discrete()
    assert len(Sampler("euler", 60).times(teacher)) == Sampler("euler", 60).evaluations(teacher) + 1 <= 41


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


@pytest.mark.parametrize("variable, level", [("vp", lambda c: np.sqrt(np.expm1(9.95 * c**2 + 0.1 * c))), ("log", np.exp),
                                             ("t", lambda c: c)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_integrates_polynomials_in_its_variable(order, variable, level):
    """level: variable -> t; `vp` is the time of dx = -beta x/2 dt + sqrt(beta) dW, beta from 0.1 to 20 (Song et al.)."""
    c = {"vp": [0.1, 0.05, 0.02, 0.005], "log": [1.0, 0.4, 0.1, -0.5], "t": [9.0, 5.0, 2.0, 1.0]}[variable]
    (*nodes, end), fine = c[3 - order:], np.linspace(c[2], c[3], 20_001)
    known = integrate_lagrange([float(level(node)) for node in reversed(nodes)], float(level(nodes[-1])), float(level(end)), variable)
    for power in range(order):
        found = sum(w * node**power for w, node in zip(known, reversed(nodes)))
        exact = torch.trapezoid(torch.from_numpy(fine**power), torch.from_numpy(level(fine))).item()
        assert found == pytest.approx(exact, rel=1e-6)


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
    *_, (_, x) = member("samplers", "ddpm")(gaussian64((1,)), torch.tensor([[80.0], [-80.0]]).double(), log_times(64))
    assert (x[0] - x[1]).abs() / 2 < 0.05


def test_ddim_with_eta_1_is_ddpm(gaussian):
    draw = lambda k: torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    for ts in (log_times(12), gaussian.grid_times(9), torch.tensor([80.0, 1.0, 0.0], dtype=torch.float64)):
        for (_, a), (_, b) in zip(*(parse_sampler(text)[0].integrate(gaussian, start((2,)), ts, None, draw)
                                    for text in ("ddim,eta=1", "ddpm"))):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# seeds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", VARIANTS)
def test_an_image_is_its_seed_s_alone(text):
    """Of stochastic samplers too: no other image of the batch, and no state of a generator, has a part in it."""
    teacher, seeds = load_teacher("gaussian:1x4x4,modes=3,std=0.3"), [3, 1, 4, 15, 9, 2, 6, 5]
    [sampler] = parse_sampler(f"{text}:5")
    draw = lambda seeds, **options: sample_teacher(teacher, seeds, sampler=sampler, **options)
    images = draw(seeds)
    assert images.shape == (8, 1, 4, 4) and images.isfinite().all() and images.dtype == torch.float32
    for size in (1, 3, 8):
        torch.manual_seed(size)
        torch.testing.assert_close(draw(seeds, batch_size=size), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(draw(seeds[::-1]), images.flip(0), rtol=0, atol=1e-5)
    assert torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(1).min() > 1e-3


@pytest.mark.parametrize("text, plain", [
    ("ddim,eta=0.7", "ddim"), ("ddim,eta=1", "ddim,eta=0.7"), ("ddpm,variance=large", "ddpm"), ("heun,churn=3", "heun"),
    *((f"heun,churn=3,churn_{option}", "heun,churn=3") for option in ("noise=1.1", "min=1", "max=1"))])
def test_options_of_the_noise_change_the_images(text, plain):
    teacher = load_teacher("gaussian:1x4x4,std=0.3")
    a, b = (sample_teacher(teacher, range(4), sampler=parse_sampler(f"{each}:5")[0]) for each in (text, plain))
    assert (a - b).abs().max() > 1e-3


def test_draws_of_steps_are_independent(monkeypatch):
    """Of one another, and of z."""
    draws, sampler = [], Sampler("ddpm", 5)

    def keep(self, denoise, z, ts, labels, draw):
        draws.extend([z / 80, *(draw(k) for k in range(4))])
        yield 0.0, z

    monkeypatch.setattr(Sampler, "integrate", keep)
    sample_teacher(FunctionDenoiser(lambda x, t, labels: x, (1, 32, 32)), range(2), sampler=sampler)
    flat = torch.stack(draws).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(5)).abs().max() < 0.1 and (flat.std(dim=1) - 1).abs().max() < 0.1


# names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [
    ("heun", [Sampler("heun", STEPS)]), ("ddim:10,50", [Sampler("ddim", 10), Sampler("ddim", 50)]),
    ("deis3:10", [Sampler("deis", 10, {"order": 3})]), ("dpm_solver2:5", [Sampler("dpm_solver", 5, {"order": 2})]),
    ("dpm_solver_pp:5", [Sampler("dpm_solver_pp", 5)]), ("dpm_solver_fast:10", [Sampler("dpm_solver", 10, {"fast": True})]),
    ("ddim,eta=0.5,spacing=uniform:7", [Sampler("ddim", 7, {"eta": 0.5}, "uniform")]),
    ("heun,churn=40,churn_min=0.05,churn_max=50,churn_noise=1.003:256",
     [Sampler("heun", 256, {"churn": 40, "churn_min": 0.05, "churn_max": 50, "churn_noise": 1.003})]),
    ("ddpm,variance=large,spacing=log:9", [Sampler("ddpm", 9, {"variance": "large"}, "log")]),
    ("deis,variable=t,order=2:4", [Sampler("deis", 4, {"variable": "t", "order": 2})])])
def test_parse_sampler(text, expected, gaussian):
    """str() gives what parses to the same sampler."""
    assert parse_sampler(text) == expected
    z = start((2,))
    for sampler in expected:
        [again] = parse_sampler(str(sampler))
        assert str(again) == str(sampler) and torch.equal(again.times(gaussian), sampler.times(gaussian))
        *_, (_, a), (_, b) = (list(each.integrate(gaussian, z, log_times(9)))[-1] for each in (again, sampler))
        assert torch.equal(a, b)


@pytest.mark.parametrize("text, words", [
    ("huen:5", "unknown sampler 'huen'; did you mean 'heun'"), ("", "unknown sampler ''"), ("no3:5", "sampler 'no3'"),
    ("ddim,et=1:5", "unknown option of samplers/ddim 'et'; did you mean 'eta'"), ("heun2:5", "samplers/heun 'order'"),
    ("ddim,eta=much:5", "eta: .*number.*'much'"), ("deis4:5", "order: .*1, 2 or 3"),
    ("deis,variable=x:5", "variable: .*'x'"), ("ddpm,variance=tiny:5", "variance: .*'small' or 'large'"),
    ("dpm_solver,fast=perhaps:5", "fast: .*'perhaps'"),
    ("dpm_solver2,fast=true:5", "leave order=2 out"), ("ddim,z=1:5", "'z'"),
    ("ddim,eta:5", r"NAME\[,option=value"), ("ddim,:5", r"NAME\[,option=value"),
    ("ddim:0", "steps must be 1 to 10000, got 0"), ("ddim:-3", "got -3"), ("ddim:1000000000", "1 to 10000"),
    ("ddim:10,0", "got 0"), ("ddim:x", "whole numbers such as 10,50, got 'x'"), ("ddim:5,", "'5,'"), ("ddim:1e3", "'1e3'"),
    ("ddim,eta=2:5", "eta: .*less than or equal to 1"), ("ddim,eta=nan:5", "eta: "), ("heun,churn=-1:5", "churn: "),
    ("ddim,draw=1:5", "draw is no option"), ("euler,draw=1:5", "draw is no option"),
    ("ddim,spacing=karas:5", "unknown spacing of times 'karas'; did you mean 'karras'"), ("ddim,spacing=5:5", "'5'")])
def test_what_is_no_sampler_is_one_line(text, words):
    with pytest.raises(PidistillError, match=words) as error:
        parse_sampler(text)
    assert "\n" not in str(error.value)


# times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["karras", "log", "uniform"])
@pytest.mark.parametrize("kind", ["any", "discrete", "part"])
def test_spacings(spacing, kind):
    """From T to eps and then 0, descending, among the levels that the teacher knows."""
    teacher = {"any": gaussian64, "discrete": lambda: discrete(), "part": lambda: discrete(t_min=0.05, t_max=10.0)}[kind]()
    for steps in (1, 2, 3, 7, 30, 100):
        ts = Sampler("euler", steps, spacing=spacing).times(teacher)
        assert ts.dtype == torch.float64 and len(ts) <= steps + 1 and (ts[1:] < ts[:-1]).all()
        assert ts[0] == teacher.t_max and ts[-1] == 0 and (steps == 1 or ts[-2] == teacher.t_min)
        if teacher.times is None:
            assert len(ts) == steps + 1
        else:
            assert torch.isin(ts[:-1], teacher.times).all() and (steps > 7 or len(ts) == steps + 1)


def test_spacings_are_what_they_say():
    teacher, known = gaussian64(), discrete()
    log, uniform = (Sampler("euler", 9, spacing=each).times(teacher)[:-1] for each in ("log", "uniform"))
    assert log.log().diff().std() < 1e-9 and uniform.diff().std() < 1e-9
    steps = torch.searchsorted(known.times, Sampler("euler", 14, spacing="uniform").times(known)[:-1])
    assert steps.tolist() == list(range(39, -1, -3))
    assert torch.equal(Sampler("euler", 9).times(teacher)[:-1], teacher.grid_times(9))
    assert len(Sampler("euler", 100, spacing="uniform").times(known)) == 41


# devices, and every kind of teacher -----------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """A tiny DiT with a decoder: without guidance, and with."""
    from tests.models.teachers.test_diffusers import LATENT, ddim, dit, save, vae

    spec = save(tmp_path_factory.mktemp("pipeline") / "p", ddim(**LATENT), dit(), vae(), "DiTPipeline")
    return load_teacher(spec), load_teacher(spec + ",guidance=2")


@pytest.mark.parametrize("text", [*NAMES, *STOCHASTIC])
def test_labels_guidance_and_decoder(text, latent):
    plain, guided = latent
    [sampler], seeds, y = parse_sampler(f"{text}:4"), [5, 6], torch.tensor([0, 3])
    draw = lambda teacher, labels, **options: sample_teacher(teacher, seeds, labels, sampler=sampler, **options)
    latents = draw(guided, y, decode=False)
    assert latents.shape == (2, 4, 8, 8) and latents.isfinite().all()
    torch.testing.assert_close(draw(guided, y), guided.decoder(latents), rtol=1e-4, atol=1e-4)
    other = draw(guided, torch.tensor([0, 1]), decode=False)
    assert torch.allclose(other[0], latents[0], rtol=1e-4, atol=1e-4) and not torch.allclose(other[1], latents[1], rtol=0.01)
    torch.testing.assert_close(draw(guided, y, batch_size=1, decode=False), latents, rtol=1e-3, atol=1e-3)
    null = torch.full_like(y, guided.null_label)
    mixed = FunctionDenoiser(lambda x, t, y: 2 * plain.denoise(x, t, y) - plain.denoise(x, t, null), plain.shape, 5,
                             t_min=plain.t_min, t_max=plain.t_max)
    mixed.times = plain.times
    torch.testing.assert_close(draw(mixed, y), latents, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(draw(plain, y, decode=False), latents, rtol=0.01)
