"""Every random draw is a function of integers alone: x = Philox(key=(seed, step), counter=(0, phase, domain, k)).

The counter-based generator (Salmon et al., 2011) is keyed with all that a draw depends on. The number of processes, the
split into batches and a resumption then change no draw, and there is no random state to save. Draws are made on the CPU
with numpy, so that they are the same for every device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError

# Streams that must never meet: no image that is looked at or measured shares its noise with training, nor with a pair.
TRAIN, NOISE, LABEL, PAIRS, PAIR_LABEL = 0, 1, 2, 3, 4
MAX_SEED = 2**63


def stream(seed: int, step: int = 0, k: int = 0, domain: int = TRAIN, phase: int = 0) -> np.random.Generator:
    """Make the generator of one draw; two generators that differ in any of the five integers are independent.

    seed: the run's seed while training, the image's otherwise.
    step: the training step.
    k: the draw's number in the step, counted over the global batch.
    domain: TRAIN, NOISE, LABEL, PAIRS or PAIR_LABEL.
    phase: the number of the phase in the step.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, phase, domain, k]))


def streams(seeds: Sequence[int], step: int = 0, domain: int = TRAIN) -> Iterator[np.random.Generator]:
    """Yield stream(seed, step, domain=domain) of one seed after the other; draw from it before the next is taken.

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
    """Draw unit Gaussian noise (B, *shape), float32, on the CPU; row b is a function of seeds[b] and `number` alone.

    seeds: B integers.
    shape: the shape of one image.
    number: 0 for the noise that an image begins as; 1, 2, ... for the draws of a stochastic sampler.
    """
    rows = np.empty((len(seeds), *shape), np.float32)
    for row, generator in zip(rows, streams(seeds, number, NOISE)):
        generator.standard_normal(dtype=np.float32, out=row)  # without the interpreter's lock
    return torch.from_numpy(rows)


def labels_of(seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """Draw class labels (B,) int64, one a seed and a function of that seed alone; None for an unconditional model."""
    if not num_classes:
        return None
    labels = [int(generator.integers(num_classes)) for generator in streams(seeds, domain=LABEL)]
    return torch.tensor(labels, dtype=torch.int64)


def pair_streams(seed: int, numbers: Sequence[int], domain: int) -> Iterator[np.random.Generator]:
    """Yield stream(seed, k=number, domain=domain) of one number after the other, as `streams` does of seeds."""
    generator = stream(seed, domain=domain)
    start: Any = generator.bit_generator.state
    for number in numbers:
        start["state"]["counter"][3] = number
        generator.bit_generator.state = start
        yield generator


def pair_noise(seed: int, numbers: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draw the unit Gaussian noise of pairs (B, *shape), float32, on the CPU; row b is a function of seed and numbers[b].

    seed: of the pairs. numbers: of B of them, from 0. shape: of one image.
    """
    rows = np.empty((len(numbers), *shape), np.float32)
    for row, generator in zip(rows, pair_streams(seed, numbers, PAIRS)):
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)


def pair_labels(seed: int, numbers: Sequence[int], num_classes: int) -> Tensor | None:
    """Draw the class labels of pairs (B,) int64, as `pair_noise` draws their noise; None for an unconditional model."""
    if not num_classes:
        return None
    labels = [int(generator.integers(num_classes)) for generator in pair_streams(seed, numbers, PAIR_LABEL)]
    return torch.from_numpy(np.array(labels, np.int64))  # real ones where a dry run makes its tensors on the meta device


def parse_integers(text: str, what: str = "seeds", most: int = 1_000_000) -> list[int]:
    """Parse numbers and ranges: `0-63,70` becomes [0, ..., 63, 70]. Raises PidistillError otherwise.

    text: the numbers and ranges, with commas between them.
    what: what the numbers are, for errors.
    most: how many numbers there may be.
    """
    values: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", piece)
        if not match:
            raise PidistillError(f"{what} must be numbers and ranges such as 0-63,70, got {piece.strip()!r} in {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PidistillError(f"{what}: the range {piece.strip()!r} runs backwards; write {last}-{first}")
        if last - first + 1 + len(values) > most:
            raise PidistillError(f"{what}: {text!r} names more than {most} values")
        values.extend(range(first, last + 1))
    return values
