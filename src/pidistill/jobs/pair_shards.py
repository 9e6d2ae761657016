"""A shard of pairs: noise z ~ N(0, T^2 I), and the states of dx/dt = (x - D(x, t))/t on a sampler's way from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import pair_labels, pair_noise
from pidistill.core.tensors import find_device
from pidistill.files.pairs import PairSettings
from pidistill.models.denoiser import Denoiser
from pidistill.models.drawing import draw_batches
from pidistill.models.samplers.base import Sampler

Kinds = dict[str, Tensor]
Errors = dict[str, tuple[float, float, int]]  # of a kind of tensor: the largest error, the sum of squares, how many numbers


def choose_states(count: int, trajectory: int | None) -> list[int]:
    """Choose M of so many states, the last among them, as even as can be; the last alone without a trajectory."""
    return [round(count * k / trajectory) - 1 for k in range(1, trajectory + 1)] if trajectory else [count - 1]


def make_draw(teacher: Denoiser, sampler: Sampler, trajectory: int | None) -> Callable[..., Tensor]:
    """Make the function that solves from unit noise (B, C, H, W) and labels, and gives states (B, M, C, H, W).

    trajectory: M; None: 1, the solution, which is the last state.
    """
    ts = sampler.times(teacher)
    kept = {*choose_states(len(sampler.trace(teacher).times), trajectory)}

    def draw(z: Tensor, y: Tensor | None, numbers: Sequence[int]) -> Tensor:
        states = [x.clone() for k, (_, x) in enumerate(sampler.integrate(teacher, z * teacher.t_max, ts, y)) if k in kept]
        return torch.stack(states, dim=1).float()

    return draw


def draw_shard(draw: Callable[..., Tensor], teacher: Denoiser, settings: PairSettings, shard: int,
               batch: int) -> tuple[Kinds, Errors | None]:
    """Draw the tensors of a shard, and measure the error of float16 if that is what they are stored in.

    draw: as `make_draw` makes it. batch: pairs at a time, counted from the shard's first. Raises PidistillError for
    solutions that are no numbers, or none of float16.
    """
    numbers, dtype = settings.find_numbers(shard), getattr(torch, settings.dtype)
    labels = pair_labels(settings.seed, numbers, settings.num_classes)
    tensors: Kinds = {"x": torch.empty(len(numbers), *settings.shape, dtype=dtype)}
    if settings.times:
        tensors["states"] = torch.empty(len(numbers), len(settings.times), *settings.shape, dtype=dtype)
    k, parts = 0, list[Errors]()
    noises = lambda rows, shape: pair_noise(settings.seed, rows, shape)
    with closing(draw_batches(draw, numbers, labels, settings.shape, find_device(teacher), batch_size=batch,
                              draw_noise=noises)) as batches:
        for states in batches:
            values = {"x": states[:, -1]} | ({"states": states} if settings.times else {})
            for name, value in values.items():
                tensors[name][k:k + len(value)] = stored = value.to(dtype)
                if not stored.isfinite().all():
                    row = int((~stored.flatten(1).isfinite().all(1)).nonzero()[0])
                    raise PidistillError(f"the solution of pair {k + row + numbers[0]} is not finite" + (
                        " in float16; store float32, without half" if value.isfinite().all() else
                        "; `pidistill inspect TEACHER --check` asks a teacher at which noise levels it gives NaN"))
            if dtype == torch.float16:
                parts.append({name: measure_error(value) for name, value in values.items()})
            k += len(states)
    return tensors | ({} if labels is None else {"labels": labels}), merge_errors(parts) if parts else None


def measure_error(values: Tensor) -> tuple[float, float, int]:
    """Measure the largest error of values in float16, the sum of its squares, and of how many numbers."""
    error = (values.half().double() - values.double()).abs()
    return float(error.max()), float(error.square().sum()), error.numel()


def merge_errors(parts: Sequence[Errors]) -> Errors:
    """Join the errors of parts: the largest of all, and sums."""
    names = {name for part in parts for name in part}
    columns = {name: list(zip(*(part[name] for part in parts if name in part))) for name in sorted(names)}
    return {name: (max(largest), sum(squares), sum(count)) for name, (largest, squares, count) in columns.items()}
