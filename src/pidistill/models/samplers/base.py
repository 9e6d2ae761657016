"""Samplers (denoise, z, ts, labels) -> yields (t, x), of the teacher's ODE or SDE. One file = one sampler.

All are written for x = image + t noise. A variance preserving model's state is alpha_t x, alpha_t = (1 + t^2)^-1/2, and the
exponential integrators (DDIM, DPM-Solver, DEIS, UniPC) are the same in both, with lambda = log(alpha/sigma) = -log t.
A last time of 0 is reached by x = D, one evaluation at the time before. ts: (N+1,) float64, descending. Samplers of the SDE
take `draw`, number of a draw -> unit Gaussian noise like z; without it they add none.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build, choices, member, names
from pidistill.core.seeds import noise
from pidistill.core.tensors import device_of, send
from pidistill.models.denoiser import Denoiser
from pidistill.models.drawing import draw_batches, gather
from pidistill.models.grid import snap

STEPS = 18  # Heun with 18 steps, 35 evaluations: EDM's setting for 32x32 images
MOST_STEPS = 10_000
Spacing = Literal["karras", "log", "uniform"]


@dataclass(frozen=True)
class Sampler:
    """A sampler with its options. steps: times of the grid, to which a last 0 is added.

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
            raise choices("spacing of times", str(self.spacing), ["karras", "log", "uniform"])
        z = torch.zeros(1, 1)  # wrong options are found now, and not after hours
        list(self.integrate(lambda x, t, labels: x, z, torch.tensor([1.0, 0.5, 0.0]), None, lambda k: z))

    def integrate(self, denoise: Callable[..., Tensor], z: Tensor, ts: Tensor, labels: Tensor | None = None,
                  draw: Callable[[int], Tensor] | None = None) -> Iterator[tuple[float, Tensor]]:
        """The sampler's states. draw: number of a draw (from 0) -> unit Gaussian noise (B, ...), for those that need it."""
        if "draw" in self.options:
            raise PidistillError(f"samplers/{self.name}: draw is no option; noise comes from the seeds")
        stochastic = {"draw": draw} if "draw" in inspect.signature(member("samplers", self.name)).parameters else {}
        return build("samplers", self.name, denoise, z, ts, labels, **stochastic, **self.options)

    def times(self, teacher: Denoiser) -> Tensor:
        """(steps + 1,) float64, from the teacher's T to eps, and 0. Fewer where several snap to one of its noise levels."""
        if self.steps == 1:
            t = torch.tensor([teacher.t_max], dtype=torch.float64)
        elif self.spacing == "karras":
            t = teacher.grid_times(self.steps)
        elif self.spacing == "uniform" and teacher.times is not None:
            known = teacher.times[(teacher.times >= teacher.t_min) & (teacher.times <= teacher.t_max)]
            t = known[torch.linspace(len(known) - 1, 0, self.steps).round().long().unique().flip(0)]
        else:
            first, last = (math.log(each) if self.spacing == "log" else each for each in (teacher.t_max, teacher.t_min))
            t = torch.linspace(first, last, self.steps, dtype=torch.float64)
            t = snap(t.exp() if self.spacing == "log" else t, teacher.times)
            t[0], t[-1] = teacher.t_max, teacher.t_min
        return torch.cat([t, torch.zeros(1, dtype=torch.float64)])

    def evaluations(self, teacher: Denoiser) -> int:
        """How often it asks the teacher for an image: counted, on numbers instead of images."""
        count = 0

        def denoise(x: Tensor, t: float, labels: Tensor | None) -> Tensor:
            nonlocal count
            count += 1
            return x

        z = torch.zeros(1, 1)
        for _ in self.integrate(denoise, z, self.times(teacher), None, lambda k: z):
            pass
        return count

    def __str__(self) -> str:
        """As `parse_sampler` takes it."""
        given = {**self.options, **({"spacing": self.spacing} if self.spacing != "karras" else {})}
        name = self.name + ("_fast" if given.pop("fast", False) else str(given.pop("order", "")))
        return ",".join([name, *(f"{key}={str(value).lower()}" for key, value in given.items())]) + f":{self.steps}"


def parse_sampler(text: str) -> list[Sampler]:
    """`ddim,eta=0.5:10,50` -> samplers with 10 and 50 steps. NAME[,option=value...][:STEPS,...].

    An order may be part of the name (`deis3`, `dpm_solver2`), and `dpm_solver_fast` is dpm_solver with fast=true.
    """
    head, _, budgets = text.partition(":")
    name, *given = head.split(",")
    name, options = expand_name(name)
    for pair in given:
        key, sign, value = pair.partition("=")
        if not sign:
            raise PidistillError("a sampler is NAME[,option=value...]:STEPS[,STEPS...], such as ddim,eta=0.5:10,50, got "
                                 f"{text!r}")
        options[key.strip()] = parse_value(value.strip())
    spacing = options.pop("spacing", "karras")
    try:
        steps = [int(part) for part in budgets.split(",")] if budgets else [STEPS]
    except ValueError:
        raise PidistillError(f"steps of the sampler {name} must be whole numbers such as 10,50, got {budgets!r}") from None
    return [Sampler(name, number, options, spacing) for number in steps]


def expand_name(name: str) -> tuple[str, dict[str, Any]]:
    """The sampler that a short name stands for, and the options in it: `deis3` is `deis` with order=3."""
    if name == "dpm_solver_fast":
        return "dpm_solver", {"fast": True}
    ordered = re.fullmatch(r"(\w+?)_?(\d)", name)
    if ordered and name not in names("samplers") and ordered[1] in names("samplers"):
        return ordered[1], {"order": int(ordered[2])}
    return name, {}


def is_sampler(text: str) -> bool:
    """Whether a text such as `ddim,eta=0.5:10` names a sampler, or can name nothing else, and not a folder."""
    return expand_name(re.split("[,:]", text)[0])[0] in names("samplers") or (":" in text and not Path(text).exists())


def parse_single_sampler(text: str, steps: int) -> Sampler:
    """The sampler `heun`, which then takes `steps` steps, or `heun:18`."""
    found = parse_sampler(text if ":" in text else f"{text}:{steps}")
    if len(found) > 1:
        raise PidistillError(f"--sampler takes one number of steps, got {text!r}")
    return found[0]


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
    """The teacher's images for the noise of `seeds`: (len(seeds), C, H, W), float32, CPU; decode: latents as images.

    Also of stochastic samplers, image k is a function of seeds[k] and labels[k] alone.
    """
    chosen = sampler if isinstance(sampler, Sampler) else Sampler(sampler, steps)
    return gather(draw_teacher(teacher, seeds, labels, sampler=chosen, batch_size=batch_size, decode=decode), len(seeds),
                  teacher.image_shape if decode else teacher.shape)


def draw_teacher(teacher: Denoiser, seeds: Sequence[int], labels: Tensor | None, *, sampler: Sampler, batch_size: int,
                 decode: bool = True, finish: Callable[[Tensor], Tensor] = Tensor.float,
                 call: Callable[..., Tensor] | None = None) -> Generator[Tensor, None, None]:
    """Images (B, C, H, W) batch by batch, unclipped, on the CPU. finish, call: as in `Student.draw`."""
    ts, device, denoise = sampler.times(teacher), device_of(teacher), call or teacher

    def draw(z: Tensor, y: Tensor | None, part: Sequence[int]) -> Tensor:
        again = lambda k: send(noise(part, teacher.shape, k + 1), device)
        *_, (_, x) = sampler.integrate(denoise, z * teacher.t_max, ts, y, again)
        return finish(teacher.decoder(x) if teacher.decoder and decode else x)

    return draw_batches(draw, seeds, labels, teacher.shape, device, batch_size=batch_size)
