"""Several processes that share a measurement, started by `accelerate launch` or `torchrun`; and this process's device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from pidistill.core.errors import PidistillError

PATIENCE = timedelta(hours=1)  # of processes that wait while the main one draws and measures
joined: Any = None  # the group that adds tensors on the CPU, once this process shares its measurements


def join() -> None:
    """Share measurements with the processes that were started together. Verbs that measure call it; training does not."""
    global joined
    if joined is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        joined = distributed.new_group(backend="gloo")


def rank() -> int:
    return distributed.get_rank(joined) if joined else 0


def size() -> int:
    return distributed.get_world_size(joined) if joined else 1


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU; or a device's name."""
    if name != "auto":
        try:
            torch.empty(0, device=name)
            return torch.device(name)
        except (RuntimeError, AssertionError) as error:
            raise PidistillError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


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
        before, mine = self.last, torch.tensor(values)
        self.last = distributed.all_reduce(mine, distributed.ReduceOp.MAX, group=self.group, async_op=True), mine
        if before is None:
            return [0] * len(values)
        before[0].wait()
        return before[1].tolist()


@contextmanager
def lost_processes() -> Iterator[None]:
    """What PyTorch raises where another process is gone, as one line."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.is_initialized() or not (isinstance(error, distributed.DistError) or "gloo/" in str(error)):
            raise
        raise PidistillError("another process of this run has ended, or cannot be reached; its own output says why. The run "
                             "goes on from its newest checkpoint, with any number of processes") from None


def add_up(tensors: list[Tensor]) -> None:
    """Replace each (on the CPU) by its sum over all processes. All must call it with tensors of the same shapes."""
    for tensor in tensors if joined else []:
        distributed.all_reduce(tensor, group=joined)
