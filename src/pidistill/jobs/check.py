"""`pidistill inspect TEACHER --check`: what is wrong with a denoiser, in sentences.

The check asks whether D(x, t, labels) behaves as the mean of clean images given x = image + t noise. It is a list of
questions, `QUESTIONS`; each puts what the teacher answers into a sentence, and leaves what later ones need in a `Case`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pidistill.core.errors import first_line
from pidistill.core.seeds import labels_of, noise
from pidistill.core.tensors import expand_time, find_device
from pidistill.models.denoiser import Denoiser

Verdict = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Check:
    """One question that a denoiser answered."""

    name: str
    verdict: Verdict
    says: str


class Case:
    """A teacher that is being checked, with what is asked of it and what its answers have taught so far.

    teacher: the denoiser D(x, t, labels), on its device, with its times T and eps and its number of classes.
    batch: images at a time, B. n and y are their noise (B, *shape) and labels (B,), the latter None without classes.
    """

    mean: Any       # D(T n, T), an image that any denoiser gives; a tensor (B, *shape) once that is known
    levels: Tensor  # (8,): noise levels from T to eps
    clean: Tensor   # D at the last of them
    image: Tensor   # the mean as an image in [-1, 1]
    x: Tensor       # what was asked about last, at
    t: float        # this noise level
    near: Tensor    # D(x, t) of an image at t = 2 sigma_data
    first: Tensor   # D(x, t) of the mean at the fourth level

    def __init__(self, teacher: Denoiser, batch: int):
        self.teacher, self.batch, self.device = teacher, batch, find_device(teacher)
        self.T, self.eps, self.middle = teacher.t_max, teacher.t_min, 2 * teacher.sigma_data
        self.n = noise(range(batch), teacher.shape).to(self.device)
        labels = labels_of(range(batch), teacher.num_classes)
        self.y = None if labels is None else labels.to(self.device)
        self.z = self.n * self.T


def judge(name: str, wrong: bool, bad: str, good: str, verdict: Verdict = "wrong") -> Check:
    """Answer a question: with the sentence `bad` and the verdict if something is wrong, else with `good` and `ok`."""
    return Check(name, verdict if wrong else "ok", bad if wrong else good)


def rms(x: Tensor) -> float:
    """The root of the mean square of all elements."""
    return x.double().square().mean().sqrt().item()


def ask_call(case: Case) -> Check | None:
    """Can D be called? Says nothing if so."""
    try:
        case.mean = case.teacher.denoise(case.z, expand_time(case.T, case.z), case.y)  # of any shape: that is asked next
        return None
    except Exception as error:  # whatever the user's code raises
        reason = first_line(error) if str(error).strip() else ""
        return Check("call", "wrong", f"D(x, t, labels), x {tuple(case.z.shape)}: {type(error).__name__}: {reason}")


def ask_shape(case: Case) -> Check:
    """Is D of the shape of x?"""
    shape = tuple(case.mean.shape) if isinstance(case.mean, Tensor) else type(case.mean).__name__
    return judge("shape", shape != tuple(case.z.shape),
                 f"D gives {shape} for x of {tuple(case.z.shape)}; both must be equal", f"{tuple(case.teacher.shape)}, as x")


def ask_type(case: Case) -> Check:
    """Is D of the type of x?"""
    dtype, case.mean = case.mean.dtype, case.mean.to(case.z.dtype)
    return judge("type", dtype != case.z.dtype, f"D gives {dtype} for x in {case.z.dtype}; convert it", str(dtype),
                 "warning")


def ask_input(case: Case) -> Check:
    """Does D leave x as it is?"""
    return judge("input", not torch.equal(case.z, case.n * case.T), "D changes its input x in place; work on a copy",
                 "not changed")


def ask_finite(case: Case) -> Check:
    """Is D finite at eight noise levels from T to eps?"""
    T, eps = case.T, case.eps
    case.levels = torch.tensor(
        [(T ** (1 / 7) + k / 7 * (eps ** (1 / 7) - T ** (1 / 7))) ** 7 for k in range(8)]).clamp(eps, T)
    outputs = [case.teacher(case.mean + case.n * float(t), float(t), case.y) for t in case.levels]
    case.clean = outputs[-1]
    bad = [float(t) for t, D in zip(case.levels, outputs) if not D.isfinite().all()]
    return judge("finite", bool(bad), f"D is not finite at t = {', '.join(f'{t:.3g}' for t in bad)}",
                 f"from t = {T:g} to {eps:g}")


def ask_small_t(case: Case) -> Check:
    """Is D(x, eps) about x, from which nothing is to be removed?"""
    teacher, eps, n = case.teacher, case.eps, case.n
    case.image = case.mean.clamp(-1, 1) if len(teacher.shape) == 3 else case.mean
    x = case.image + eps * n
    D = teacher(x, eps, case.y)
    off, allowed = rms(D - x), max(5 * eps, 0.02 * teacher.sigma_data)
    is_noise = rms(case.mean - n) < 0.3 * rms(n)  # at T the noise is all there is to see
    hint = "; what it gives is the noise: such a network needs D = x - t eps" if is_noise else \
        "; is it the clean image that it gives, and is t the noise level in data units (not its logarithm or a step)?"
    return judge("small t", off > allowed,
                 f"D(x, {eps:g}) must be about x, it is {off:.3g} away (allowed: {allowed:.2g}){hint}",
                 f"D(x, {eps:g}) is x within {off:.2g}")


def ask_large_t(case: Case) -> Check:
    """Is D(x, T) about the mean of the data, where nothing can be known of the image?"""
    mean, n, T, sigma_data = case.mean, case.n, case.T, case.teacher.sigma_data
    leak = (mean * n).double().mean().item() / max((n * n).double().mean().item(), 1e-30)
    size, limit = rms(mean), 5 * sigma_data + 2
    return judge("large t", size > limit or abs(leak) > 0.3 * sigma_data,
                 f"D(x, {T:g}) must be about the data's mean, it has r.m.s. {size:.3g} and follows the noise {leak:+.2f} "
                 "times; is x - t eps meant, or is T too large for the network?",
                 f"D(x, {T:g}) has r.m.s. {size:.2g}")


def ask_noise_level(case: Case) -> Check | None:
    """Does D depend on t, between eps and T?"""
    teacher, t = case.teacher, case.middle
    if not case.eps < t < case.T:
        return None
    case.x = case.image + t * case.n
    case.near, far = teacher(case.x, t, case.y), teacher(case.x, min(case.T, 10 * t), case.y)
    return judge("noise level", rms(case.near - far) < 1e-4 * teacher.sigma_data,
                 f"D(x, t) is the same at t = {t:g} and ten times that: it does not look at t", "D depends on t")


def ask_denoises(case: Case) -> Check | None:
    """Is D nearer to the image than x is, where t is read as a noise level?"""
    t = case.middle
    if not case.eps < t < case.T:
        return None
    left, added = rms(case.near - case.image), rms(case.x - case.image)
    return judge("denoises", left > 0.9 * added,
                 f"at t = {t:g} D is not nearer to the image than x is: {left:.3g} against {added:.3g}; is t read as "
                 "another noise level, or does D scale x?",
                 f"at t = {t:g} the error falls from {added:.2g} to {left:.2g}")


def ask_range(case: Case) -> Check | None:
    """Do images lie in [-1, 1], not in [0, 1]? Asked of pixels alone."""
    if len(case.teacher.shape) != 3 or case.teacher.decoder is not None:
        return None
    low, high = case.clean.amin().item(), case.clean.amax().item()
    return judge("range", low > -0.2 and 0.5 < high < 1.5,
                 f"its images lie in {low:.2f} to {high:.2f}: [0, 1]? They should lie in [-1, 1]",
                 f"images in {low:.2f} to {high:.2f}", "warning")


def ask_repeatable(case: Case) -> Check:
    """Does the same question have the same answer?"""
    case.t = float(case.levels[3])
    case.x = case.mean + case.t * case.n
    case.first, second = case.teacher(case.x, case.t, case.y), case.teacher(case.x, case.t, case.y)
    difference = rms(case.first - second)
    return judge("repeatable", difference > 1e-4 * case.teacher.sigma_data,
                 f"the same input gives two answers, {difference:.2g} apart: is dropout on? call eval()",
                 "the same input gives the same answer")


def ask_batch(case: Case) -> Check:
    """Is the answer for a sample the same alone and among others?"""
    single = case.teacher(case.x[:1], case.t, None if case.y is None else case.y[:1])
    difference = rms(single - case.first[:1])
    return judge("batch", difference > 1e-3 * case.teacher.sigma_data,
                 f"a sample alone and among others differs by {difference:.2g}: batch normalisation in training mode? "
                 "call eval()", "samples do not mix")


def ask_labels(case: Case) -> Check | None:
    """Does D depend on the labels? Asked where there are several classes."""
    classes = case.teacher.num_classes
    if classes <= 1 or case.y is None:
        return None
    other = case.teacher(case.x, case.t, (case.y + 1) % classes)
    return judge("labels", rms(other - case.first) < 1e-4 * case.teacher.sigma_data,
                 f"all of its {classes} classes give the same D: labels are ignored", "classes differ", "warning")


def ask_speed(case: Case) -> Check:
    """How long does D take?"""
    began = time.perf_counter()
    case.teacher(case.x, case.t, case.y)
    took = 1000 * (time.perf_counter() - began) / case.batch
    return Check("speed", "ok", f"{took:.3g} ms an image in batches of {case.batch} on {case.device}")


QUESTIONS: tuple[Callable[[Case], Check | None], ...] = (
    ask_call, ask_shape, ask_type, ask_input, ask_finite, ask_small_t, ask_large_t, ask_noise_level, ask_denoises, ask_range,
    ask_repeatable, ask_batch, ask_labels, ask_speed)
FATAL = ("call", "shape", "finite")  # where something is wrong with these, nothing is left to ask about


@torch.inference_mode()
def check_teacher(teacher: Denoiser, batch: int = 16) -> list[Check]:
    """Does D(x, t, labels) behave as the mean of clean images given x = image + t noise?

    Images to ask about are the teacher's own: D(z, T) of noise, which any denoiser gives. Stops at the first answer that
    leaves nothing to ask about.
    """
    case = Case(teacher, batch)
    checks: list[Check] = []
    for ask in QUESTIONS:
        check = ask(case)
        if check is None:
            continue
        checks.append(check)
        if check.name in FATAL and check.verdict != "ok":
            break
    return checks
