"""The processes of a run agree on small numbers, of which all learn the largest; a lost process ends in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from pidistill.core.errors import PidistillError

PATIENCE = timedelta(hours=1)  # of processes that wait while the main one draws and measures


class Votes:
    """Small whole numbers of which every process learns the largest, all of them at the same call, without waiting.

    A call gives the maxima over all processes of what was handed over at the call before (zeros at the first); with one
    process those of this call. Processes that act upon it act after the same step, as their collectives want. A process
    that is gone ends the others here, at once.
    """

    def __init__(self) -> None:
        self.group: Any = distributed.new_group(backend="gloo", timeout=PATIENCE) if distributed.is_initialized() else None
        self.last: tuple[Any, Tensor] | None = None

    def __call__(self, *values: int) -> list[int]:
        if self.group is None:
            return list(values)
        previous, numbers = self.last, torch.tensor(values)
        self.last = distributed.all_reduce(numbers, distributed.ReduceOp.MAX, group=self.group, async_op=True), numbers
        if previous is None:
            return [0] * len(values)
        previous[0].wait()
        return previous[1].tolist()


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn what PyTorch raises where another process is gone into a PidistillError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.is_initialized() or not (isinstance(error, distributed.DistError) or "gloo/" in str(error)):
            raise
        raise PidistillError("another process of this run has ended, or cannot be reached; its own output says why. The run "
                             "goes on from its newest checkpoint, with any number of processes") from None
