"""Samplers integrate the teacher's ODE dx/dt = (x - D(x, t))/t, or its SDE, from T to 0. One file = one sampler.

All are written for x = image + t noise. A variance preserving model's state is alpha_t x, alpha_t = (1 + t^2)^-1/2, and the
exponential integrators (DDIM, DPM-Solver, DEIS, UniPC) are the same in both, with lambda = log(alpha/sigma) = -log t.
A last time of 0 is reached by x = D, one evaluation at the time before.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build, find_member, list_members, suggest_choices
from pidistill.core.seeds import noise
from pidistill.core.tensors import find_device, send
from pidistill.models.denoiser import Denoiser
from pidistill.models.drawing import draw_batches, gather
from pidistill.models.grid import snap

STEPS = 18  # Heun with 18 steps, 35 evaluations: EDM's setting for 32x32 images
MOST_STEPS = 10_000
Spacing = Literal["karras", "log", "uniform"]


class SamplerFunction(Protocol):
    """A file of samplers holds a generator, which integrates from z and yields every time and the state there.

    denoise: D(x, t, labels), called with t a float; it gives (B, ...).
    z: (B, ...), the state at ts[0].
    ts: (N + 1,) float64, descending; it may end in 0.
    labels: (B,) int64, or None.

    All else is an option: keyword-only, with a default and a type that pydantic checks. The samplers of the SDE also take
    `draw`, number of a draw (from 0) -> unit Gaussian noise like z, and add no noise without it.
    """

    def __call__(self, denoise: Callable[..., Tensor], z: Tensor, ts: Tensor,
                 labels: Tensor | None = None) -> Iterator[tuple[float, Tensor]]: ...


@dataclass(frozen=True)
class Sampler:
    """A sampler function with its options and number of steps. Wrong ones raise PidistillError at once.

    name: its file in `samplers/`.
    steps: times of the grid, to which a last 0 is added.
    options: of the function, by name.
    spacing: of the times between T and eps: `karras` (the teacher's rho), `log` (even in log t, DPM-Solver's choice), or
        `uniform` (even among the noise levels that the network was trained at; in t where it takes any).
    """

    name: str = "heun"
    steps: int = STEPS
    options: dict[str, Any] = field(default_factory=dict)
    spacing: Spacing = "karras"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise PidistillError(f"{self.name}: steps must be 1 to {MOST_STEPS}, got {self.steps}")
        if self.spacing not in ("karras", "log", "uniform"):
            raise suggest_choices("spacing of times", str(self.spacing), ["karras", "log", "uniform"])
        z = torch.zeros(1, 1)  # wrong options fail now, and not after hours
        list(self.integrate(lambda x, t, labels: x, z, torch.tensor([1.0, 0.5, 0.0]), None, lambda k: z))

    def integrate(self, denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None,
                  draw: Callable[[int], Tensor] | None = None) -> Iterator[tuple[float, Tensor]]:
        """Yield the times and states of the sampler function; parameters as in `SamplerFunction`."""
        if "draw" in self.options:
            raise PidistillError(f"samplers/{self.name}: draw is no option; noise comes from the seeds")
        function: SamplerFunction = find_member("samplers", self.name)
        stochastic = {"draw": draw} if "draw" in inspect.signature(function).parameters else {}

        def denoise_alike(x: Tensor, t: float, labels: Tensor | None = None) -> Tensor:
            D = denoise(x, t, labels)
            if D.shape != x.shape:  # or x - D would be of broadcast copies
                raise PidistillError(f"the denoiser must give the shape of x, {tuple(x.shape)}, it gives {tuple(D.shape)}")
            return D

        return build("samplers", self.name, denoise_alike, z, ts, labels, **stochastic, **self.options)

    def times(self, teacher: Denoiser) -> Tensor:
        """Compute the times (steps + 1,) float64 from the teacher's T to eps, and 0.

        They are fewer where several snap to one of the teacher's noise levels.
        """
        if self.steps == 1:
            t = torch.tensor([teacher.t_max], dtype=torch.float64)
        elif self.spacing == "karras":
            t = teacher.grid_times(self.steps)
        elif self.spacing == "uniform" and teacher.times is not None:
            levels = teacher.times[(teacher.times >= teacher.t_min) & (teacher.times <= teacher.t_max)]
            t = levels[torch.linspace(len(levels) - 1, 0, self.steps).round().long().unique().flip(0)]
        else:
            first, last = (math.log(end) if self.spacing == "log" else end for end in (teacher.t_max, teacher.t_min))
            t = torch.linspace(first, last, self.steps, dtype=torch.float64)
            t = snap(t.exp() if self.spacing == "log" else t, teacher.times)
            t[0], t[-1] = teacher.t_max, teacher.t_min
        return torch.cat([t, torch.zeros(1, dtype=torch.float64)])

    def evaluations(self, teacher: Denoiser) -> int:
        """Count how often the sampler calls the teacher, by a run on numbers instead of images."""
        return self.trace(teacher).evaluations

    def trace(self, teacher: Denoiser) -> Trace:
        """Find out what the sampler does with the teacher, by a run on numbers instead of images."""
        evaluations, draws, z = 0, 0, torch.zeros(1, 1)

        def denoise(x: Tensor, t: float, labels: Tensor | None) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            return x

        def draw(k: int) -> Tensor:
            nonlocal draws
            draws += 1
            return z

        times = [float(t) for t, _ in self.integrate(denoise, z, self.times(teacher), None, draw)]
        return Trace(evaluations, tuple(times), draws > 0)

    def __str__(self) -> str:
        """Write the sampler as `parse_sampler` takes it."""
        options = {**self.options, **({"spacing": self.spacing} if self.spacing != "karras" else {})}
        name = self.name + ("_fast" if options.pop("fast", False) else str(options.pop("order", "")))
        return ",".join([name, *(f"{key}={str(value).lower()}" for key, value in options.items())]) + f":{self.steps}"


@dataclass(frozen=True)
class Trace:
    """What a sampler does: its calls of the teacher, the times at which it gives a state, and whether it adds noise."""

    evaluations: int
    times: tuple[float, ...]
    stochastic: bool


def parse_sampler(text: str) -> list[Sampler]:
    """Parse NAME[,option=value...][:STEPS,...], such as `ddim,eta=0.5:10,50`, into one sampler for each number of steps.

    An order may be part of the name (`deis3`, `dpm_solver2`), and `dpm_solver_fast` is dpm_solver with fast=true. A function
    of the user's own is `python:MODULE:NAME`. Raises PidistillError in one line.
    """
    own = re.match(r"python:[^:,]*:", text)
    head, _, budgets = text[own.end() if own else 0:].partition(":")
    head = (own[0] if own else "") + head
    name, *pairs = head.split(",")
    name, options = expand_name(name)
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise PidistillError("a sampler is NAME[,option=value...]:STEPS[,STEPS...], such as ddim,eta=0.5:10,50, got "
                                 f"{text!r}")
        options[key.strip()] = parse_value(value.strip())
    spacing = options.pop("spacing", "karras")
    try:
        steps = [int(number) for number in budgets.split(",")] if budgets else [STEPS]
    except ValueError:
        raise PidistillError(f"steps of the sampler {name} must be whole numbers such as 10,50, got {budgets!r}") from None
    return [Sampler(name, number, options, spacing) for number in steps]


def expand_name(name: str) -> tuple[str, dict[str, Any]]:
    """Resolve a short name into the sampler that it stands for and the options in it: `deis3` is `deis` with order=3."""
    if name == "dpm_solver_fast":
        return "dpm_solver", {"fast": True}
    match = re.fullmatch(r"(\w+?)_?(\d)", name)
    if match and name not in list_members("samplers") and match[1] in list_members("samplers"):
        return match[1], {"order": int(match[2])}
    return name, {}


def is_sampler(text: str) -> bool:
    """Tell whether a text such as `ddim,eta=0.5:10` names a sampler, or can name nothing else, and not a folder."""
    name = expand_name(re.split("[,:]", text)[0])[0]
    return name == "python" or name in list_members("samplers") or (":" in text and not Path(text).exists())


def parse_single_sampler(text: str, steps: int) -> Sampler:
    """Parse `heun:18`, or `heun`, which then takes `steps` steps. Raises PidistillError for several numbers of steps."""
    samplers = parse_sampler(text if ":" in text else f"{text}:{steps}")
    if len(samplers) > 1:
        raise PidistillError(f"--sampler takes one number of steps, got {text!r}")
    return samplers[0]


def parse_value(text: str) -> int | float | str:
    """Read a number or a truth value where the text is one, else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@torch.inference_mode()
def sample_teacher(teacher: Denoiser, seeds: Sequence[int], labels: Tensor | None = None, *,
                   sampler: str | Sampler = "heun", steps: int = STEPS, batch_size: int = 250,
                   decode: bool = True) -> Tensor:
    """Draw the teacher's images for the noise of `seeds`: (len(seeds), C, H, W) float32, unclipped, on the CPU.

    Also of stochastic samplers, image k is a function of seeds[k] and labels[k] alone.

    labels: (len(seeds),) int64, or None for an unconditional teacher.
    sampler: a sampler, or the name of one that takes `steps` steps without options.
    batch_size: images at a time. decode: latents become images, where there is a decoder.
    """
    if not isinstance(sampler, Sampler):
        sampler = Sampler(sampler, steps)
    batches = draw_teacher(teacher, seeds, labels, sampler=sampler, batch_size=batch_size, decode=decode)
    return gather(batches, len(seeds), teacher.image_shape if decode else teacher.shape)


def draw_teacher(teacher: Denoiser, seeds: Sequence[int], labels: Tensor | None, *, sampler: Sampler, batch_size: int,
                 decode: bool = True, finish: Callable[[Tensor], Tensor] = Tensor.float,
                 call: Callable[..., Tensor] | None = None) -> Generator[Tensor, None, None]:
    """Yield the teacher's images (B, C, H, W) batch by batch, unclipped, on the CPU.

    labels: (len(seeds),) int64, or None for an unconditional teacher.
    batch_size: B, images at a time. decode: latents become images, where there is a decoder.
    finish: changes each batch before it leaves the device, such as to uint8.
    call: (x, t, labels) -> D, which is called instead of the teacher, such as the teacher under autocast.
    """
    ts, device, denoise = sampler.times(teacher), find_device(teacher), call or teacher
    if teacher.times is not None and len(ts) - 1 < sampler.steps:
        teacher.say_once(f"{sampler}: {len(ts) - 1} steps, as many as differ among the teacher's {len(teacher.times)} noise "
                         "levels")

    def draw(z: Tensor, y: Tensor | None, batch: Sequence[int]) -> Tensor:
        draw_noise = lambda k: send(noise(batch, teacher.shape, k + 1), device)  # 0 is z
        *_, (_, x) = sampler.integrate(denoise, z * teacher.t_max, ts, y, draw_noise)
        return finish(teacher.decoder(x) if teacher.decoder and decode else x)

    return draw_batches(draw, seeds, labels, teacher.shape, device, batch_size=batch_size)
