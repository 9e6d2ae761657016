"""A preconditioning makes a denoiser of a raw network: D(x, t) = c_skip x + c_out net(c_in x, c_noise).

One function is one formula, t (B,) float64 -> Coefficients; what a network was trained to predict is nothing but a choice
of these four. The formulas are those of Karras et al. (2022), Eq. (7) and Table 1, where sigma is t here; diffusers'
predictions with sigma = sqrt((1 - abar)/abar); and flow matching with t = s/(1 - s).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import suggest_choices
from pidistill.core.tensors import cast_like, like, to_float64
from pidistill.models.grid import SIGMA_DATA

MOST_TRAINING_STEPS = 100_000  # of a discrete schedule, at most


class Coefficients(NamedTuple):
    """The four functions of t in the preconditioning, each (B,) float64 (on the CPU, if t's device has none)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def call_preconditioned(net: Callable[..., Tensor], c: Coefficients, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Compute c_skip x + c_out net(c_in x, c_noise, labels), (B, C, H, W), in the dtype of x (B, C, H, W)."""
    output = net(like(c.c_in, x) * x, cast_like(c.c_noise, x), labels).to(x.dtype)
    return like(c.c_skip, x) * x + like(c.c_out, x) * output


def cut_variance(output: Tensor, x: Tensor) -> Tensor:
    """Cut off the variance that may follow a network's output (B, C or 2C, ...) for x (B, C, ...); gives (B, C, ...).

    Raises PidistillError for any other shape: a single channel would be broadcast over all of x.
    """
    batch, channels, *sides = x.shape
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != (batch, channels, *sides) and got != (batch, 2 * channels, *sides):
        raise PidistillError(f"a network must give as many channels as it takes, or twice (a variance after them), for x "
                             f"of {tuple(x.shape)} it gave {got}")
    return output[:, :channels]


def c_in(t: Tensor, sigma_data: float) -> Tensor:
    """EDM scales its input by (t^2 + sigma_data^2)^-1/2 (Table 1), and so does the student in Eq. (7). t: any shape."""
    return 1 / (t**2 + sigma_data**2).sqrt()


def c_noise(t: Tensor) -> Tensor:
    """EDM's network is told ln(t)/4 (Table 1), and so is the student's in Eq. (7). t: any shape."""
    return t.log() / 4


# What networks were trained to predict ------------------------------------------------------------------------------------


def edm(t: Tensor, *, sigma_data: float = SIGMA_DATA) -> Coefficients:
    """EDM's and EDM2's networks predict a mixture of image and noise (Karras et al., 2022, Table 1, last column)."""
    total = t**2 + sigma_data**2
    return Coefficients(sigma_data**2 / total, t * sigma_data / total.sqrt(), c_in(t, sigma_data), c_noise(t))


def edm_v(t: Tensor, *, sigma_data: float = SIGMA_DATA) -> Coefficients:
    """EDM's network with the sign of v, as diffusers' EDM schedulers with prediction_type v_prediction have it."""
    c_skip, c_out, c_in, c_noise = edm(t, sigma_data=sigma_data)
    return Coefficients(c_skip, -c_out, c_in, c_noise)


def vp(t: Tensor, *, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000) -> Coefficients:
    """The network of the variance preserving SDE (Song et al., 2021) predicts the noise, at (M - 1) sigma^-1(t)."""
    u = t.float()  # as the networks were trained: at 0.002, log(1 + t^2) is 2 % of its own away from the exact one
    time = ((beta_min**2 + 2 * beta_d * (1 + u**2).log()).sqrt() - beta_min) / beta_d  # sigma^-1(t)
    return Coefficients(torch.ones_like(t), -t, c_in(t, 1), (M - 1) * time)


def ve(t: Tensor) -> Coefficients:
    """The network of the variance exploding SDE (Song et al., 2021), in EDM's form, predicts -noise of unscaled input."""
    return Coefficients(torch.ones_like(t), t, torch.ones_like(t), (t / 2).log())


def score(t: Tensor, *, scale: float = 2.0) -> Coefficients:
    """A network predicts the score of a variance exploding model (Song et al., 2021): D = x + sigma^2 score.

    Its data is 1/scale of ours, as diffusers' in [0, 1], so t = scale sigma. It centres its input, and sees ours as it is.
    """
    return Coefficients(torch.ones_like(t), t**2 / scale, torch.ones_like(t), t / scale)


def iddpm(t: Tensor, *, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> Coefficients:
    """iDDPM's network (Nichol & Dhariwal, 2021), as in EDM, predicts the noise at the nearest step of its schedule."""
    steps = copy_to_device(iddpm_times(C_1=C_1, C_2=C_2, M=M), t.device)  # u_0 > ... > u_M = 0
    nearest = (t[:, None] - steps).abs().argmin(dim=1)
    return Coefficients(torch.ones_like(t), -t, c_in(t, 1), (M - 1 - nearest).to(t.dtype))


def epsilon(t: Tensor, *, sigmas: Sequence[float]) -> Coefficients:
    """DDPM's network (Ho et al., 2020) predicts the noise: D = x - t eps(x / sqrt(1 + t^2)).

    sigmas: noise levels of the training steps 0, 1, ..., ascending.
    """
    return Coefficients(torch.ones_like(t), -t, c_in(t, 1), interpolate_step(t, sigmas))


def v_prediction(t: Tensor, *, sigmas: Sequence[float]) -> Coefficients:
    """The network predicts v = alpha eps - sigma x_0 (Salimans & Ho, 2022): D = x/(1 + t^2) - t/sqrt(1 + t^2) v."""
    return Coefficients(1 / (1 + t**2), -t * c_in(t, 1), c_in(t, 1), interpolate_step(t, sigmas))


def sample(t: Tensor, *, sigmas: Sequence[float]) -> Coefficients:
    """The network predicts the clean image itself: D = net(x / sqrt(1 + t^2))."""
    return Coefficients(torch.zeros_like(t), torch.ones_like(t), c_in(t, 1), interpolate_step(t, sigmas))


def flow(t: Tensor, *, scale: float = 1000.0, whole: bool = False) -> Coefficients:
    """Flow matching (Lipman et al., 2023) predicts the velocity v = eps - x_0 of x_s = (1 - s) x_0 + s eps, s = t/(1 + t).

    D = x_s - s v with x_s = x/(1 + t). scale: the network is told scale * s; whole: rounded down, as by diffusers' multistep
    solvers.
    """
    s = t / (1 + t)
    clock = scale * s
    if whole:  # a level that went through float32 is its step itself
        clock = (clock + 1e-3).floor()
    return Coefficients(1 - s, -s, 1 - s, clock)


FORMULAS: dict[str, Callable[..., Coefficients]] = {
    f.__name__: f for f in (edm, edm_v, vp, ve, score, iddpm, epsilon, v_prediction, sample, flow)}


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept serves training too
def copy_to_device(table: Tensor, device: torch.device) -> Tensor:
    """Copy a table of constants to the device, once: a copy at every call would make the host wait for the device."""
    return table.to(device)


@functools.cache
@torch.inference_mode(False)
def iddpm_times(*, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> Tensor:
    """Compute the noise levels u_0 > ... > u_M = 0 of iDDPM's training (Karras et al., 2022, Table 1), (M + 1,) float64.

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1}/abar_j, C_1) - 1).
    """
    j = torch.arange(M + 1, dtype=torch.float32, device="cpu")  # float32 as in the published files: float64 ends 5e-4 away
    abar = (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2
    ratio = (abar[:-1] / abar[1:]).clamp(min=C_1)
    u = torch.zeros(M + 1, device="cpu")
    for k in range(M, 0, -1):
        u[k - 1] = ((u[k] ** 2 + 1) / ratio[k - 1] - 1).sqrt()
    return u.double()


def interpolate_step(t: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Find the training step whose noise level is t, (B,); between steps interpolate in log t. Gives (B,) float64."""
    table = sigmas if isinstance(sigmas, Tensor) else torch.tensor(sigmas, dtype=torch.float64)
    levels = copy_to_device(table, t.device).log()
    x = t.log()
    k = torch.searchsorted(levels, x.detach()).clamp(1, len(levels) - 1)
    step = k - 1 + (x - levels[k - 1]) / (levels[k] - levels[k - 1])
    step = step.clamp(0, len(levels) - 1)
    # A level that went through float32 is the step itself again. Its derivative in t stays, for the autodiff scheme.
    nearest = step.round()
    return step + torch.where((step - nearest).abs() < 1e-3, nearest - step, 0).detach()


class Preconditioning:
    """A formula with its constants gives the coefficients of every time.

    spec: {"name": ..., constants} or the name alone, as config.json holds it.
    sigma_data: standard deviation of the data, which the formulas of EDM take unless `spec` names another.
    times: the noise levels that the network was trained at, ascending (K,), or None where it takes any.
    """

    def __init__(self, spec: str | dict[str, Any] = "edm", sigma_data: float = SIGMA_DATA):
        constants: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
        self.name: str = constants.pop("name")
        if self.name not in FORMULAS:
            raise suggest_choices("preconditioning", self.name, list(FORMULAS))
        self.formula, self.sigma_data = FORMULAS[self.name], sigma_data
        self.spec: str | dict[str, Any] = {"name": self.name, **constants} if constants else self.name
        if self.name in ("edm", "edm_v"):
            constants.setdefault("sigma_data", sigma_data)  # its own, where the network was trained with another
        accepted = inspect.signature(self.formula).parameters
        for key in constants:
            if key not in accepted:
                raise suggest_choices(f"constant of the preconditioning {self.name}", key, list(accepted)[1:])
        for key, value in constants.items():
            types, expected = ((bool,), "true or false") if key == "whole" else ((int, float), "a number")
            if key != "sigmas" and not (type(value) in types and -1e6 < value < 1e6):
                raise PidistillError(f"the preconditioning {self.name}: {key} must be {expected}, got {str(value)[:40]}")
        if not constants.get("sigma_data", 1) > 0:
            raise PidistillError(f"the preconditioning {self.name}: sigma_data must be positive, "
                                 f"got {constants['sigma_data']}")
        if not 1 <= constants.get("M", 1) <= MOST_TRAINING_STEPS:
            raise PidistillError(f"the preconditioning {self.name}: M must be from 1 to {MOST_TRAINING_STEPS}, "
                                 f"got {constants['M']}")
        self.times: Tensor | None = None
        if self.name == "iddpm":
            self.times = iddpm_times(**constants).flip(0)[1:]  # without 0
        elif "sigmas" in accepted:
            if "sigmas" not in constants:
                raise PidistillError(f"the preconditioning {self.name} needs `sigmas`, its training steps' noise levels")
            # On the CPU also where a network is built on the meta device.
            self.times = constants["sigmas"] = torch.tensor(constants["sigmas"], dtype=torch.float64, device="cpu")
            if self.times.ndim != 1 or len(self.times) < 2 or not (self.times[1:] > self.times[:-1]).all() \
                    or not self.times[0] > 0 or not self.times[-1].isfinite():
                raise PidistillError(f"the preconditioning {self.name}: sigmas must be positive, finite and ascending")
        self.constants = constants

    def __call__(self, t: Tensor) -> Coefficients:
        """Compute the coefficients at t (B,), in float64."""
        return self.formula(to_float64(t), **self.constants)

    def for_student(self, t: Tensor) -> Coefficients:
        """Compute the coefficients of F_theta(z, t) = c_skip u + c_out net(c_in u, c_noise), u = c_in(T) z of EDM; t: (B,).

        EDM's own networks are F_theta as they are (Eq. 7). Others give the noise or a velocity, and a student that started
        so would be noise: F is then the clean image that the network says it sees in u as if u came from time t,

            F = (D(v, t) - c_skip v) (t^2 + s^2)^1/2 / t,   v = (t^2 + s^2)^1/2 u,   c_skip = s^2/(t^2 + s^2),

        s = sigma_data: at t = T, where u is the network's own input, that is D(z, T); at small t it is of the size of data,
        as what the image's noise says of it.
        """
        t = to_float64(t)
        c = self(t)
        if self.name == "edm":
            return Coefficients(torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t), c.c_noise)
        scale = (t**2 + self.sigma_data**2).sqrt()
        skip = self.sigma_data**2 / scale**2
        return Coefficients((c.c_skip - skip) * scale**2 / t, c.c_out * scale / t, c.c_in * scale, c.c_noise)

    def for_consistency(self, t: Tensor, t_min: float) -> Coefficients:
        """Compute the coefficients of f(x, t) = c_skip x + c_out net(c_in x, c_noise), a consistency function; t: (B,).

        With s = sigma_data and eps = t_min it is (Song et al., 2023, Eq. 5 and Appendix C)

            f = s^2/((t - eps)^2 + s^2) x + s (t - eps)/(t^2 + s^2)^1/2 F,   F = (D - c_skip x) (t^2 + s^2)^1/2 / (t s)
              = s^2/((t - eps)^2 + s^2) x + (1 - eps/t) (D - c_skip x),      c_skip = s^2/(t^2 + s^2),

        where D is the network's own, whatever it predicts. f(x, eps) = x for all weights, bit for bit.
        """
        # eps is rounded as t was, so that they differ by 0 where they are equal.
        t, past_end = to_float64(t), to_float64(t) - to_float64(t.new_full((), t_min))
        c, part = self(t), past_end / t
        skip = 1 / (1 + (past_end / self.sigma_data) ** 2)  # of f; in this form it is 1 itself at eps
        return Coefficients(skip + part * (c.c_skip - edm(t, sigma_data=self.sigma_data).c_skip), part * c.c_out,
                            c.c_in, c.c_noise)
