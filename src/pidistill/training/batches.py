"""The random draws of a run, as the batches of its steps: functions of seed, step, phase and place in the batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pidistill.core.seeds import stream
from pidistill.core.tensors import send
from pidistill.core.threads import run_ahead
from pidistill.objectives.base import Batch, Phase


def draw_batch(phase: Phase, number: int, seed: int, step: int, ks: range, device: torch.device) -> Batch:
    """Draw samples of one step and stack them; they are the same whichever process asks and however the batch is split.

    phase, number: what says what a sample consists of, and which phase of the objective it is, counted from 0.
    seed, step: of the run, and of the step in it, counted from 0.
    ks: the samples' numbers in the global batch.
    device: where the tensors (len(ks), ...) go.
    """
    samples = [phase.draw(stream(seed, step, k, phase=number), step) for k in ks]
    return {key: send(torch.from_numpy(np.stack([sample[key] for sample in samples])), device) for key in samples[0]}


class Batches:
    """The microbatches of every phase of every step, which another thread draws and sends while the device computes.

    phases: of the objective.
    seed, device: as `draw_batch` takes them.
    steps: the steps to draw for, counted from 0.
    microbatches: the numbers of the samples of each microbatch.
    """

    def __init__(self, phases: Sequence[Phase], seed: int, steps: range, microbatches: Sequence[range],
                 device: torch.device):
        self.count = len(microbatches)
        places = ((phase, number, seed, step, ks, device) for step in steps for number, phase in enumerate(phases)
                  if phase.is_due(step) for ks in microbatches)
        self.queue = run_ahead(lambda place: draw_batch(*place), places, threads=1, depth=2)

    def take(self) -> Iterator[Batch]:
        """Give the microbatches of the next phase, one after another."""
        return itertools.islice(self.queue, self.count)


def split_samples(ks: range, batch: int, processes: int, micro: int) -> list[range]:
    """Split a process's samples into microbatches, as many on every process.

    ks: the samples' numbers in the global batch; processes differ by one sample at most.
    batch: samples of all processes.
    micro: samples that a microbatch has at most, or one more where another process could not have as many microbatches.
    """
    count = min(-(-batch // (processes * micro)), batch // processes)
    return [ks[len(ks) * k // count:len(ks) * (k + 1) // count] for k in range(count)]
