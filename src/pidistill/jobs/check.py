"""`pidistill inspect TEACHER --check`: what is wrong with a denoiser, in sentences."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pidistill.core.seeds import labels_of, noise
from pidistill.core.tensors import find_device
from pidistill.models.denoiser import Denoiser

Verdict = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Check:
    """One question that a denoiser answered."""

    name: str
    verdict: Verdict
    says: str


@torch.inference_mode()
def check_teacher(teacher: Denoiser, batch: int = 16) -> list[Check]:
    """Does D(x, t, labels) behave as the mean of clean images given x = image + t noise?

    Images to ask about are the teacher's own: D(z, T) of noise, which any denoiser gives. Stops at the first answer that
    leaves nothing to ask about.
    """
    device, T, eps = find_device(teacher), teacher.t_max, teacher.t_min
    seeds = range(batch)
    n = noise(seeds, teacher.shape).to(device)
    y = labels_of(seeds, teacher.num_classes)
    y = None if y is None else y.to(device)
    checks: list[Check] = []

    def say(name: str, wrong: bool, bad: str, good: str, verdict: Verdict = "wrong") -> bool:
        checks.append(Check(name, verdict if wrong else "ok", bad if wrong else good))
        return not wrong

    z = n * T
    before = z.clone()
    try:
        mean = teacher(z, T, y)
    except Exception as error:  # whatever the user's code raises
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        checks.append(Check("call", "wrong", f"D(x, t, labels), x {tuple(z.shape)}: {type(error).__name__}: {reason}"))
        return checks
    shape = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
    if not say("shape", shape != tuple(z.shape), f"D gives {shape} for x of {tuple(z.shape)}; both must be equal",
               f"{tuple(teacher.shape)}, as x"):
        return checks
    say("type", mean.dtype != z.dtype, f"D gives {mean.dtype} for x in {z.dtype}; convert it", str(mean.dtype), "warning")
    mean = mean.to(z.dtype)
    say("input", not torch.equal(z, before), "D changes its input x in place; work on a copy", "not changed")
    levels = torch.tensor([(T ** (1 / 7) + k / 7 * (eps ** (1 / 7) - T ** (1 / 7))) ** 7 for k in range(8)]).clamp(eps, T)
    outputs = [teacher(mean + n * float(t), float(t), y) for t in levels]
    bad = [float(t) for t, D in zip(levels, outputs) if not D.isfinite().all()]
    if not say("finite", bool(bad), f"D is not finite at t = {', '.join(f'{t:.3g}' for t in bad)}",
               f"from t = {T:g} to {eps:g}"):
        return checks
    rms = lambda x: x.double().square().mean().sqrt().item()

    # At small t nothing is to be removed; at T nothing can be known.
    image = mean.clamp(-1, 1) if len(teacher.shape) == 3 else mean
    x = image + eps * n
    D = teacher(x, eps, y)
    off, allowed = rms(D - x), max(5 * eps, 0.02 * teacher.sigma_data)
    is_noise = rms(mean - n) < 0.3 * rms(n)  # at T the noise is all there is to see
    what = "; what it gives is the noise: such a network needs D = x - t eps" if is_noise else \
        "; is it the clean image that it gives, and is t the noise level in data units (not its logarithm or a step)?"
    say("small t", off > allowed,
        f"D(x, {eps:g}) must be about x, it is {off:.3g} away (allowed: {allowed:.2g}){what}",
        f"D(x, {eps:g}) is x within {off:.2g}")
    leak = (mean * n).double().mean().item() / max((n * n).double().mean().item(), 1e-30)
    size, limit = rms(mean), 5 * teacher.sigma_data + 2
    say("large t", size > limit or abs(leak) > 0.3 * teacher.sigma_data,
        f"D(x, {T:g}) must be about the data's mean, it has r.m.s. {size:.3g} and follows the noise {leak:+.2f} times; is "
        "x - t eps meant, or is T too large for the network?",
        f"D(x, {T:g}) has r.m.s. {size:.2g}")

    # Between, the noise level must matter, and as a noise level.
    middle = teacher.sigma_data * 2
    if eps < middle < T:
        x = image + middle * n
        near, far = teacher(x, middle, y), teacher(x, min(T, 10 * middle), y)
        say("noise level", rms(near - far) < 1e-4 * teacher.sigma_data,
            f"D(x, t) is the same at t = {middle:g} and ten times that: it does not look at t", "D depends on t")
        say("denoises", rms(near - image) > 0.9 * rms(x - image),
            f"at t = {middle:g} D is not nearer to the image than x is: {rms(near - image):.3g} against "
            f"{rms(x - image):.3g}; is t read as another noise level, or does D scale x?",
            f"at t = {middle:g} the error falls from {rms(x - image):.2g} to {rms(near - image):.2g}")
    clean = outputs[-1]
    if len(teacher.shape) == 3 and teacher.decoder is None:
        low, high = clean.amin().item(), clean.amax().item()
        say("range", low > -0.2 and 0.5 < high < 1.5,
            f"its images lie in {low:.2f} to {high:.2f}: [0, 1]? They should lie in [-1, 1]",
            f"images in {low:.2f} to {high:.2f}", "warning")

    # The same question twice, alone and among others.
    t = float(levels[3])
    x = mean + t * n
    first, again = teacher(x, t, y), teacher(x, t, y)
    say("repeatable", rms(first - again) > 1e-4 * teacher.sigma_data,
        f"the same input gives two answers, {rms(first - again):.2g} apart: is dropout on? call eval()",
        "the same input gives the same answer")
    alone = teacher(x[:1], t, None if y is None else y[:1])
    say("batch", rms(alone - first[:1]) > 1e-3 * teacher.sigma_data,
        f"a sample alone and among others differs by {rms(alone - first[:1]):.2g}: batch normalisation in training mode? "
        "call eval()", "samples do not mix")
    if teacher.num_classes > 1 and y is not None:
        other = teacher(x, t, (y + 1) % teacher.num_classes)
        say("labels", rms(other - first) < 1e-4 * teacher.sigma_data,
            f"all of its {teacher.num_classes} classes give the same D: labels are ignored", "classes differ", "warning")
    began = time.perf_counter()
    teacher(x, t, y)
    took = 1000 * (time.perf_counter() - began) / batch
    checks.append(Check("speed", "ok", f"{took:.3g} ms an image in batches of {batch} on {device}"))
    return checks
