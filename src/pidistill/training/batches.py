"""The random draws of a run, as the batches of its steps: functions of seed, step and place in the batch alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pidistill.core.seeds import stream
from pidistill.core.tensors import send
from pidistill.core.threads import ahead
from pidistill.objectives.base import Objective


def draw_batch(objective: Objective, seed: int, step: int, ks: range, device: torch.device) -> dict[str, Tensor]:
    """Draws number `ks` of a step, stacked. The same whichever process asks and however the batch is split."""
    rows = [objective.draw(stream(seed, step, k)) for k in ks]
    return {key: send(torch.from_numpy(np.stack([row[key] for row in rows])), device) for key in rows[0]}


class Batches:
    """The microbatches of every step, drawn and sent by another thread while the device computes."""

    def __init__(self, objective: Objective, seed: int, steps: range, parts: Sequence[range], device: torch.device):
        self.parts = len(parts)
        wanted = ((step, part) for step in steps for part in parts)
        self.drawn = ahead(lambda each: draw_batch(objective, seed, *each, device), wanted, threads=1, depth=2)

    def step(self) -> Iterator[dict[str, Tensor]]:
        """Those of the next step."""
        return itertools.islice(self.drawn, self.parts)


def split_samples(ks: range, batch: int, processes: int, micro: int) -> list[range]:
    """A process's samples as microbatches of at most `micro`: of as many on every process, whose samples differ by one."""
    count = min(-(-batch // (processes * micro)), batch // processes)
    return [ks[len(ks) * k // count:len(ks) * (k + 1) // count] for k in range(count)]
