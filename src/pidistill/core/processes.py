"""Several processes, started by `accelerate launch` or `torchrun`, share a measurement; each chooses its device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from pidistill.core.errors import PidistillError, to_line, words_of

COUNTS: dict[str, Callable[[], int]] = {
    "cuda": lambda: torch.cuda.device_count() if torch.cuda.is_available() else 0,
    "mps": lambda: int(torch.backends.mps.is_available())}
ABSENT = {"cuda": "there is no GPU of NVIDIA's (or AMD's), or its driver is missing, or this PyTorch is built without CUDA",
          "mps": "this is no Mac with Apple silicon, or its PyTorch is built without MPS"}

group: Any = None  # the group that adds tensors on the CPU, once this process shares its measurements


def join() -> None:
    """Share measurements with the processes that were started together. Verbs that measure call this; training does not."""
    global group
    if group is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        group = distributed.new_group(backend="gloo")


@contextmanager
def sharing() -> Iterator[None]:
    """Share the work in the block, as after `join`, with the processes that were started together; no longer afterwards."""
    global group
    before = group
    join()
    try:
        yield
    finally:
        group = before


def is_main() -> bool:
    """Say whether this is the only process, or the one of several that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def say(line: str) -> None:
    """Print a line for people, where this is the main process; what cannot be printed in it becomes ?."""
    if is_main():
        from pidistill.core.console import console  # rich, which most have no need of

        console.print(to_line(line), soft_wrap=True)


def get_rank() -> int:
    """Give this process's number among those that share a measurement; 0 before they do."""
    return distributed.get_rank(group) if group else 0


def get_world_size() -> int:
    """Count the processes that share a measurement."""
    return distributed.get_world_size(group) if group else 1


def choose_device(name: str = "auto") -> torch.device:
    """Give the device of that name; `auto` stands for this process's CUDA device where there is one, else for the CPU.

    Raises PidistillError, in one line, for a device that this machine, or this PyTorch, does not have.
    """
    if name != "auto":
        return find_named_device(name)
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def find_named_device(name: str) -> torch.device:
    """Give the device of that name, which can compute. Raises PidistillError in one line."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PidistillError(f"the device {name!r} is not known; name auto, cpu, cuda, cuda:1 or mps") from None
    count = COUNTS[device.type]() if device.type in COUNTS else 1
    if not count:
        raise PidistillError(f"the device {name!r} cannot be used: {ABSENT[device.type]}; the device cpu is always there")
    if device.index is not None and device.type in COUNTS and device.index >= count:
        raise PidistillError(f"the device {name!r} cannot be used: this machine has {device.type}:0"
                             f"{f' to {device.type}:{count - 1}' if count > 1 else ' alone'}")
    try:
        if torch.zeros(1, device=device).tolist() == [0.0]:
            return device
    except Exception as error:  # each backend's own, several
        raise PidistillError(f"the device {name!r} cannot be used: {words_of(error)[:160]}") from error
    raise PidistillError(f"the device {name!r} does not compute")


def add_up(tensors: list[Tensor]) -> None:
    """Replace every tensor (on the CPU) by its sum over all processes, which must all bring tensors of the same shapes."""
    for tensor in tensors if group else []:
        distributed.all_reduce(tensor, group=group)
