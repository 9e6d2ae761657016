"""Several processes, started by `accelerate launch` or `torchrun`, share a measurement; each chooses its device."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed

from pidistill.core.errors import PidistillError, words_of

group: Any = None  # the group that adds tensors on the CPU, once this process shares its measurements


def join() -> None:
    """Share measurements with the processes that were started together. Verbs that measure call this; training does not."""
    global group
    if group is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        group = distributed.new_group(backend="gloo")


def is_main() -> bool:
    """Say whether this is the only process, or the one of several that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def get_rank() -> int:
    """Give this process's number among those that share a measurement; 0 before they do."""
    return distributed.get_rank(group) if group else 0


def get_world_size() -> int:
    """Count the processes that share a measurement."""
    return distributed.get_world_size(group) if group else 1


def choose_device(name: str = "auto") -> torch.device:
    """Give the device of that name; `auto` stands for this process's GPU where there is one, else for the CPU."""
    if name != "auto":
        try:
            torch.empty(0, device=name)
            return torch.device(name)
        except (RuntimeError, AssertionError) as error:
            raise PidistillError(f"the device {name!r} cannot be used: {words_of(error)}") from None
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def add_up(tensors: list[Tensor]) -> None:
    """Replace every tensor (on the CPU) by its sum over all processes, which must all bring tensors of the same shapes."""
    for tensor in tensors if group else []:
        distributed.all_reduce(tensor, group=group)
