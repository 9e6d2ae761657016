"""Every sampler against diffusers' scheduler of the same update, or the paper's algorithm where it has none.

Theirs work on x_vp = x / sqrt(1 + t^2) and predict the noise (x - D)/t, where they are of variance preserving models. Both
are driven from one z, over the scheduler's own noise levels and by one nonlinear denoiser with a closed form; every state is
compared. The schedulers' tables are lifted to float64, so that only the updates can differ.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import pytest
import torch

from pidistill.models.samplers.base import Sampler, parse_sampler
from pidistill.models.teachers.base import load_teacher
from tests.helpers import start

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:.*algorithm_type.*dpmsolver:FutureWarning")
SHAPE, BATCH, EXACT, SINGLE = (1, 8, 8), 3, 1e-9, 1e-5  # SINGLE: of schedulers that compute in float32
BETAS = {"linear": {"beta_schedule": "linear"},
         "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}}


@pytest.fixture(params=BETAS)
def betas(request):
    return BETAS[request.param]


@functools.cache
def mixture():
    return load_teacher("gaussian:1x8x8,modes=4,std=0.3").double()


def draw(k):
    return torch.randn(BATCH, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + k))


def ours(text, ts, z):
    """States after every step, of `name,option=value`."""
    return [x for _, x in parse_sampler(text)[0].integrate(mixture(), z, ts, None, draw)]


def levels(scheduler, steps, ts=None):
    """set_timesteps, with the noise levels in float64, or others; -> ts."""
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double() if ts is None else ts
    scheduler.set_begin_index(0)
    return scheduler.sigmas


def noise_seen(x, t):
    return (x - mixture()(x, float(t))) / t


def vp(scheduler, ts, z, before=lambda k: None, **step):
    """The scheduler's states, times sqrt(1 + t^2). before(k) is called before step k; step: k -> its other arguments."""
    x, states = z / (1 + ts[0] ** 2).sqrt(), []
    for k, (t, u) in enumerate(pairwise(ts)):
        before(k)
        e = noise_seen(x * (1 + t**2).sqrt(), t)
        x = scheduler.step(e, scheduler.timesteps[k], x, **{key: value(k) for key, value in step.items()}).prev_sample
        states.append(x * (1 + u**2).sqrt())
    return states


def same(ours, theirs, most=EXACT):
    """The largest r.m.s. of the difference over the r.m.s. of the state."""
    assert len(ours) == len(theirs) > 1
    worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs))
    assert worst < most, worst


def tables(kind, betas, **options):
    """A scheduler that looks up alpha-bar, with 20 steps -> (scheduler, ts): its own levels and a last 0."""
    scheduler = kind(clip_sample=False, timestep_spacing="leading", **betas, **options)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(20)
    abar = scheduler.alphas_cumprod[scheduler.timesteps]
    return scheduler, torch.cat([((1 - abar) / abar).sqrt(), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(betas, eta):
    """Its last step is to alpha-bar = 1 (set_alpha_to_one), ours to 0."""
    scheduler, ts = tables(diffusers.DDIMScheduler, betas, set_alpha_to_one=True)
    z = start(SHAPE, BATCH, ts[0].item())
    same(ours(f"ddim,eta={eta}", ts, z), vp(scheduler, ts, z, eta=lambda k: eta, variance_noise=draw))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(betas, variance, monkeypatch):
    """Its levels end with training step 0, whose step adds no noise, as ours to 0."""
    scheduler, ts = tables(diffusers.DDPMScheduler, betas, variance_type=f"fixed_{variance}")
    draws = iter(range(100))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: draw(next(draws)))
    z = start(SHAPE, BATCH, ts[0].item())
    same(ours(f"ddpm,variance={variance}", ts, z), vp(scheduler, ts, z))
    assert next(draws) == 19


def test_euler():
    """EDMEulerScheduler computes in float32 and takes the image itself as pred_original_sample."""
    scheduler = diffusers.EDMEulerScheduler()
    ts = levels(scheduler, 20)
    x = z = start(SHAPE, BATCH, ts[0].item())
    theirs = []
    for k, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(x, t, x, pred_original_sample=mixture()(x, ts[k].item())).prev_sample
        theirs.append(x)
    same(ours("euler", ts, z), theirs, SINGLE)


def test_euler_of_the_discrete_scheduler(betas):
    scheduler = diffusers.EulerDiscreteScheduler(**betas)
    ts = levels(scheduler, 20)
    x = z = start(SHAPE, BATCH, ts[0].item())
    theirs = []
    for t, sigma in zip(scheduler.timesteps, ts):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(noise_seen(x, sigma), t, x).prev_sample
        theirs.append(x)
    same(ours("euler", ts, z), theirs, SINGLE)


@pytest.mark.parametrize("karras", [False, True])
def test_heun(betas, karras):
    """HeunDiscreteScheduler counts every evaluation as a step, and its sigmas twice but the first and the last 0."""
    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=karras, **betas)
    sigmas = levels(scheduler, 12)
    ts = torch.cat([sigmas[:1], sigmas[1::2]])
    x = z = start(SHAPE, BATCH, ts[0].item())
    theirs = []
    for t, sigma in zip(scheduler.timesteps, sigmas):
        x = scheduler.step(noise_seen(x, sigma), t, x).prev_sample
        if scheduler.state_in_first_order or scheduler.step_index == len(sigmas) - 1:
            theirs.append(x)
    assert len(scheduler.timesteps) == 23 and ts[-1] == 0
    same(ours("heun", ts, z), theirs)


def algorithm_2(D, x, t, S_churn, S_tmin, S_tmax, S_noise, epsilon):
    """Karras et al. (2022), Algorithm 2, line by line; t: t_0 > ... > t_N = 0."""
    N, states = len(t) - 1, []
    for i in range(N):
        gamma = min(S_churn / N, math.sqrt(2) - 1) if S_tmin <= t[i] <= S_tmax else 0
        eps_i = S_noise * epsilon(i)
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * eps_i
        d_i = (x_hat - D(x_hat, t_hat)) / t_hat
        x_next = x_hat + (t[i + 1] - t_hat) * d_i
        if t[i + 1] != 0:
            d_prime = (x_next - D(x_next, t[i + 1])) / t[i + 1]
            x_next = x_hat + (t[i + 1] - t_hat) * (0.5 * d_i + 0.5 * d_prime)
        x = x_next
        states.append(x)
    return states


@pytest.mark.parametrize("churn, low, high, noise", [(0, 0, math.inf, 1), (4, 0, math.inf, 1), (40, 0.05, 50, 1.003)])
def test_heun_with_churn_is_algorithm_2(churn, low, high, noise):
    """diffusers has churn with Euler's method only: against the paper's formulas."""
    ts = [*mixture().grid_times(18).tolist(), 0.0]
    z = start(SHAPE, BATCH)
    text = f"heun,churn={churn},churn_min={low},churn_max={high},churn_noise={noise}"
    same(ours(text, torch.tensor(ts, dtype=torch.float64), z), algorithm_2(mixture(), z, ts, churn, low, high, noise, draw))


@pytest.mark.parametrize("churn", [0.3, 40.0])
def test_churn_of_one_step_is_edm_eulers(churn, monkeypatch):
    """A step to 0 is Euler's in both; its D is of the raised level, which EDMEulerScheduler leaves to the caller."""
    monkeypatch.setattr("diffusers.schedulers.scheduling_edm_euler.randn_tensor", lambda *_, **__: draw(0))
    scheduler, ts = diffusers.EDMEulerScheduler(), torch.tensor([2.0, 0.0], dtype=torch.float64)
    levels(scheduler, 1, ts)
    z, seen = start(SHAPE, BATCH, 2.0), []
    sampler = Sampler("heun", 1, {"churn": churn, "churn_noise": 1.003})
    denoise = lambda x, t, labels: seen.append(t) or mixture()(x, t) + 0.1 * x
    *_, (_, x) = sampler.integrate(denoise, z, ts, None, draw)
    raised = z + math.sqrt(seen[0] ** 2 - 4) * 1.003 * draw(0)
    scheduler.scale_model_input(z, scheduler.timesteps[0])
    theirs = scheduler.step(z, scheduler.timesteps[0], z, s_churn=churn, s_noise=1.003,
                            pred_original_sample=denoise(raised, seen[0], None)).prev_sample
    same([raised, x], [raised, theirs], SINGLE)
    assert seen[0] == pytest.approx(2 * (1 + min(churn, math.sqrt(2) - 1)))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver(betas, order):
    """DPMSolverSinglestepScheduler("dpmsolver"), which cannot step to 0: both end above.

    It counts every evaluation as a step, over levels even in lambda so that r = 1/2 and r_1, r_2 = 1/3, 2/3. DPM-Solver-3
    has the `heun` form of the intermediate second-order update and the `midpoint` form of the last: switched in between.
    """
    singlestep(betas, order, 5, 5 * order, f"dpm_solver,order={order}", list(range(order - 1, 5 * order, order)))


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7, 8, 15])
def test_dpm_solver_fast(betas, steps):
    """lower_order_final: steps of order 3 and a rest of 2 and 1, over the same levels; ends of our steps are compared."""
    full = {0: [3] * (steps // 3 - 1) + [2, 1], 1: [3] * (steps // 3) + [1], 2: [3] * (steps // 3) + [2]}[steps % 3]
    ends = [sum(full[:k + 1]) - 1 for k in range(len(full))]
    singlestep(betas, 3, steps, steps, "dpm_solver,fast=true", ends, lower_order_final=True)


def singlestep(betas, order, steps, evaluations, text, ends, **options):
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver", final_sigmas_type="sigma_min", solver_order=order, **betas, **options)
    sigmas = scheduler.sigmas.double().log()
    ts = torch.linspace(sigmas[-1], sigmas[0], evaluations + 1, dtype=torch.float64).exp()
    levels(scheduler, evaluations, ts)
    z = start(SHAPE, BATCH, ts[0].item())

    def before(k):
        inner = k not in ends
        scheduler.register_to_config(solver_type="heun" if inner else "midpoint")

    theirs = vp(scheduler, ts, z, before)
    found = ours(text, ts if "fast" in text else ts[::order], z)
    same([z, *found], [z, *(theirs[k] for k in ends)])


@pytest.mark.parametrize("last", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [6, 20])
def test_dpm_solver_pp(betas, last, steps):
    """lower_order_final off: as ours, only the step to 0 is of the first order. It computes in float32."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=False,
        final_sigmas_type=last, **betas)
    ts = levels(scheduler, steps)
    z = start(SHAPE, BATCH, ts[0].item())
    assert (ts[-1] == 0) == (last == "zero")
    same(ours("dpm_solver_pp", ts, z), vp(scheduler, ts, z), SINGLE)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("karras", [False, True])
def test_deis(betas, order, karras):
    """diffusers' polynomial is in log t, and it ends above 0; with Karras' levels its last, a repetition, is left out."""
    scheduler = diffusers.DEISMultistepScheduler(
        solver_order=order, lower_order_final=False, use_karras_sigmas=karras, **betas)
    ts = levels(scheduler, 20)
    ts = ts[:-1] if karras else ts
    z = start(SHAPE, BATCH, ts[0].item())
    same(ours(f"deis,order={order},variable=log", ts, z), vp(scheduler, ts, z))


@pytest.mark.parametrize("order, last", [(1, "sigma_min"), (2, "sigma_min"), (3, "sigma_min"), (1, "zero"), (2, "zero"),
                                         (3, "zero")])
def test_unipc(betas, order, last):
    """Predicted states. To 0 with lower_order_final, as we do; to a last level above 0 without."""
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type="bh2", predict_x0=True, lower_order_final=last == "zero", final_sigmas_type=last,
        **betas)
    ts = levels(scheduler, 20)
    z = start(SHAPE, BATCH, ts[0].item())
    same(ours(f"unipc,order={order}", ts, z), vp(scheduler, ts, z))
