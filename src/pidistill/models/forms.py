"""A form says how an image comes out of a student's network, and how a state at a time t does.

    trajectory    x_theta(z, t) = (t/T) z + (1 - t/T) F_theta(z, t)   image x_theta(z, eps)   PID, Eq. (7)
    signal        x_theta(z, t) = (t/T) z + F_theta(z, t)             image x_theta(z, eps)   Gu et al. (2023), Eq. 7
    operator      x_theta(z, t_m), m = 1 ... M, all in one call       image x_theta(z, t_M)   Zheng et al. (2023), Eq. 5
    consistency   f(x, t) = c_skip(t) x + c_out(t) F(x, t)            image f(z, T)           Song et al. (2023), Eq. 5
    denoiser      D(x, t), the teacher's of the student's network     image D(z, T)           Karras et al. (2022), Eq. 7
    jump          G(x, t, s) = (s/t) x + (1 - s/t) g(x, t, s)         image G(z, T, eps)      Kim et al. (2024), Eq. 9
    direct        F_theta(z, t)                                       image F_theta(z, T)

F_theta(z, t) is the network's output for c_in(T) z and ln(t)/4, F(x, t) that for c_in(t) x and ln(t)/4; g is the teacher's
denoiser of the student's network, which is told s as well. Functions here take a `Student`, whose module stands on this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import like
from pidistill.models.preconditioning import call_preconditioned

Call = Callable[..., Tensor]  # (x, t, labels[, s]) -> (B, C, H, W), a student's or what is called in its place
DrawNoise = Callable[[int], Tensor]  # the number of a draw, from 0 -> unit Gaussian noise like z
Multistep = Callable[[Any, Call, Tensor, list[float], Tensor | None, DrawNoise, float], Tensor]


@dataclass(frozen=True)
class Form:
    """A form of a student.

    compute: (student, z or x (B, C, H, W), t (B,), labels) -> what it gives at t, (B, C, H, W).
    follows: the student is called with the noise z at T, whatever t is, and its image is what it gives at eps. Otherwise it
        is called with a state at t, and its image is what it gives at T.
    states: whether what it gives at every t is the state of the teacher's trajectory there.
    multistep: draws in several calls, of (student, call, z, times, labels, draw, gamma); None where there is one alone.
    random: whether gamma is asked for, the share of noise that is new between two of these calls.
    """

    compute: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]
    follows: bool = False
    states: bool = False
    multistep: Multistep | None = None
    random: bool = False


def interpolate(z: Tensor, t: Tensor, F: Tensor, t_max: float) -> Tensor:
    """Eq. (7): x = (t/T) z + (1 - t/T) F, (B, C, H, W), from the network's output F at t (B,)."""
    s = like(t / t_max, z)
    return s * z + (1 - s) * F


# What a student gives -----------------------------------------------------------------------------------------------------


def trajectory(student: Any, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Eq. (7): the state at t of the trajectory that begins at z."""
    return interpolate(z, t, student.F(z, t, labels), student.t_max)


def signal(student: Any, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Gu et al. (2023), Eq. 7: the state at t, whose noise is z's, and whose signal y = x - (t/T) z the network gives."""
    return like(t / student.t_max, z) * z + student.F(z, t, labels)


def operator(student: Any, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Zheng et al. (2023): the state at t, of those at all of the student's times, of which t must be one."""
    times = t.new_tensor(student.times)
    gap, m = (t.double()[:, None] / times.double() - 1).abs().min(dim=1)
    if not t.is_meta and bool((gap > 1e-3).any()):
        raise PidistillError("a student of the form operator knows the times "
                             f"{', '.join(f'{time:.3g}' for time in times.tolist())}, not {t[gap.argmax()].item():.3g}")
    return student.list_states(z, labels)[torch.arange(len(z), device=z.device), m]


def consistency(student: Any, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Song et al. (2023), Eq. 5: the end, at eps, of the trajectory that goes through x at t."""
    c = student.preconditioning.for_consistency(t, student.t_min)
    return call_preconditioned(student.call_network, c, x, labels)


def denoiser(student: Any, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Karras et al. (2022), Eq. 7: the mean of clean images given x at t, which a network of the teacher begins as."""
    return call_preconditioned(student.call_network, student.preconditioning(t), x, labels)


def jump(student: Any, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Kim et al. (2024), Eq. 9: the end, at eps, of the trajectory that goes through x at t."""
    return student.jump(x, t, t.new_full((len(x),), student.t_min), labels)


def direct(student: Any, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """The network's output alone, F_theta(z, t) of Eq. (7), without a part of z."""
    return student.F(z, t, labels)


# Images in several calls --------------------------------------------------------------------------------------------------


def restart(student: Any, call: Call, z: Tensor, times: list[float], labels: Tensor | None, draw: DrawNoise,
            gamma: float) -> Tensor:
    """Draw by multistep consistency sampling (Song et al., 2023, Algorithm 1); times: descending, without the last, eps.

    x <- f(x + gamma (t^2 - eps^2)^1/2 n, t) after the first; gamma is 1 in the paper.
    """
    x = call(z, times[0], labels)
    for k, t in enumerate(times[1:]):
        x = call(x + gamma * (t**2 - student.t_min**2) ** 0.5 * draw(k), t, labels)
    return x


def denoise(student: Any, call: Call, z: Tensor, times: list[float], labels: Tensor | None, draw: DrawNoise,
            gamma: float) -> Tensor:
    """Draw by DDIM (Song et al., 2021), Euler's method in the noise level; times: descending, without the last, 0."""
    x = z
    for t, u in pairwise([*times, 0.0]):
        D = call(x, t, labels)
        x = D + (u / t) * (x - D)
    return x


def sample_by_gamma(student: Any, call: Call, z: Tensor, times: list[float], labels: Tensor | None, draw: DrawNoise,
                    gamma: float) -> Tensor:
    """Draw by gamma sampling (Kim et al., 2024, Algorithm 3); times: descending, without the last, eps.

    x <- G(x, t, (1 - gamma^2)^1/2 u) + gamma u n goes from t to the next time u, and to the end with gamma = 0. So gamma = 0
    follows one trajectory, and 1 is multistep consistency sampling.
    """
    x = z
    for k, (t, u) in enumerate(pairwise([*times, student.t_min])):
        last = k == len(times) - 1
        s = u if last else max((1 - gamma**2) ** 0.5 * u, student.t_min)
        x = call(x, t, labels, s)
        if not last and gamma:
            x = x + (u**2 - s**2) ** 0.5 * draw(k)
    return x


FORMS: dict[str, Form] = {
    "trajectory": Form(trajectory, follows=True, states=True),
    "signal": Form(signal, follows=True, states=True),
    "operator": Form(operator, follows=True, states=True),
    "consistency": Form(consistency, multistep=restart, random=True),
    "denoiser": Form(denoiser, multistep=denoise),
    "jump": Form(jump, multistep=sample_by_gamma, random=True),
    "direct": Form(direct),
}
