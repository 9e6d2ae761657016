"""The random draws of a run, as the batches of its steps: functions of seed, step, phase and place in the batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import stream
from pidistill.core.tensors import send
from pidistill.core.threads import run_ahead
from pidistill.objectives.base import Batch, Part, Phase


class Microbatch(NamedTuple):
    """Samples that go through at a time: the number of their part of the phase, and what was drawn for them."""

    part: int
    batch: Batch


def draw_batch(part: Part, number: int, seed: int, step: int, ks: range, device: torch.device) -> Batch:
    """Draw samples of one step and stack them; they are the same whichever process asks and however the batch is split.

    part, number: what says what a sample consists of, and which phase of the objective it is of, counted from 0.
    seed, step: of the run, and of the step in it, counted from 0.
    ks: the samples' numbers in the global batch.
    device: where the tensors (len(ks), ...) go.
    """
    samples = [part.draw(stream(seed, step, k, phase=number), step) for k in ks]
    return {key: send(torch.from_numpy(np.stack([sample[key] for sample in samples])), device) for key in samples[0]}


class Batches:
    """The microbatches of every phase of every step, which another thread draws and sends while the device computes.

    phases: of the objective.
    seed, device: as `draw_batch` takes them.
    steps: the steps to draw for, counted from 0.
    microbatches: of every phase, the part of each microbatch and the numbers of its samples.
    """

    def __init__(self, phases: Sequence[Phase], seed: int, steps: range, microbatches: Sequence[Sequence[tuple[int, range]]],
                 device: torch.device):
        places = ((phase.parts[part], number, seed, step, ks, device, part) for step in steps
                  for number, phase in enumerate(phases) if phase.is_due(step) for part, ks in microbatches[number])
        self.queue = run_ahead(lambda place: Microbatch(place[-1], draw_batch(*place[:-1])), places, threads=1, depth=2)
        self.counts = (len(microbatches[number]) for step in steps for number, phase in enumerate(phases)
                       if phase.is_due(step))

    def take(self) -> Iterator[Microbatch]:
        """Give the microbatches of the next phase, one after another."""
        return itertools.islice(self.queue, next(self.counts))


def split_phase(phase: Phase, batch: int, process: int, processes: int, micro: int) -> list[tuple[int, range]]:
    """Split the samples of a phase that are a process's: the part of each microbatch, and its samples' numbers in the batch.

    Raises PidistillError where a part has no sample for every process.

    process: number of the process. Other parameters: `split_samples`.
    """
    found = []
    for number, ks in enumerate(phase.split(batch)):
        if len(ks) < processes:
            raise PidistillError(f"train.batch={batch} gives the part {phase.parts[number].name} of the phase {phase.name} "
                                 f"{len(ks)} samples, and every one of {processes} processes needs one")
        mine = ks[len(ks) * process // processes:len(ks) * (process + 1) // processes]
        found += [(number, samples) for samples in split_samples(mine, len(ks), processes, micro)]
    return found


def split_samples(ks: range, batch: int, processes: int, micro: int) -> list[range]:
    """Split a process's samples into microbatches, as many on every process.

    ks: the samples' numbers in the global batch; processes differ by one sample at most.
    batch: samples of all processes.
    micro: samples that a microbatch has at most, or one more where another process could not have as many microbatches.
    """
    count = min(-(-batch // (processes * micro)), batch // processes)
    return [ks[len(ks) * k // count:len(ks) * (k + 1) // count] for k in range(count)]
