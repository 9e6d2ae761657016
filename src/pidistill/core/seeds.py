"""Every random draw of the package as a function of integers alone.

A counter-based generator (Philox) is keyed with what a draw depends on. Number of processes, batch split and
resumption then change no draw, and there is no random state to save. Draws are made on the CPU with numpy, so they
are the same for every device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError

# Streams that must never meet: no image that is looked at or measured shares its noise with training.
TRAIN, NOISE, LABEL = 0, 1, 2
MAX_SEED = 2**63


def stream(seed: int, step: int = 0, k: int = 0, domain: int = TRAIN) -> np.random.Generator:
    """Generator of draw number k of step `step` in a run with seed `seed`; k counts over the global batch."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, domain, k]))


def streams(seeds: Sequence[int], step: int = 0, domain: int = TRAIN) -> Iterator[np.random.Generator]:
    """stream(seed, step, domain=domain) of each seed, to be drawn from before the next one is asked for.

    One generator is set back to where each stream begins: making a new one takes 13 us, a third of what it draws for an
    image of 32x32, and holds the interpreter's lock meanwhile; this takes 2 us.
    """
    generator = stream(0, step, domain=domain)
    start: Any = generator.bit_generator.state
    for seed in seeds:
        start["state"]["key"][0] = int(seed) & 2**64 - 1
        generator.bit_generator.state = start
        yield generator


def noise(seeds: Sequence[int], shape: Sequence[int], number: int = 0) -> Tensor:
    """Unit Gaussian noise (B, *shape), float32, CPU; row b is a function of seeds[b] and `number` alone.

    number: 0 for the noise that an image begins as; 1, 2, ... for the draws of a stochastic sampler.
    """
    rows = np.empty((len(seeds), *shape), np.float32)
    for row, generator in zip(rows, streams(seeds, number, NOISE)):
        generator.standard_normal(dtype=np.float32, out=row)  # without the interpreter's lock
    return torch.from_numpy(rows)


def labels_of(seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """Class labels (B,) int64, each a function of its seed alone; None for an unconditional model."""
    if not num_classes:
        return None
    return torch.tensor([int(each.integers(num_classes)) for each in streams(seeds, domain=LABEL)], dtype=torch.int64)


def parse_integers(text: str, what: str = "seeds", most: int = 1_000_000) -> list[int]:
    """`0-63,70` -> [0, ..., 63, 70]. Errors name the part that does not parse."""
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part)
        if not match:
            raise PidistillError(f"{what} must be numbers and ranges such as 0-63,70, got {part.strip()!r} in {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PidistillError(f"{what}: the range {part.strip()!r} runs backwards; write {last}-{first}")
        if last - first + 1 + len(values) > most:
            raise PidistillError(f"{what}: {text!r} names more than {most} values")
        values.extend(range(first, last + 1))
    return values
