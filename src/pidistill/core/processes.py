"""Several processes that share a measurement, started by `accelerate launch` or `torchrun`; and this process's device."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed

from pidistill.core.errors import PidistillError, shorten_error

group: Any = None  # the group that adds tensors on the CPU, once this process shares its measurements


def join() -> None:
    """Share measurements with the processes that were started together. Verbs that measure call it; training does not."""
    global group
    if group is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        group = distributed.new_group(backend="gloo")


def is_main() -> bool:
    """Whether this is the only process, or the one of several that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def get_rank() -> int:
    """This process's number among those that share a measurement; 0 before they do."""
    return distributed.get_rank(group) if group else 0


def get_world_size() -> int:
    """How many processes share a measurement."""
    return distributed.get_world_size(group) if group else 1


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU; or a device's name."""
    if name != "auto":
        try:
            torch.empty(0, device=name)
            return torch.device(name)
        except (RuntimeError, AssertionError) as error:
            raise PidistillError(f"the device {name!r} cannot be used: {shorten_error(error)}") from None
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def add_up(tensors: list[Tensor]) -> None:
    """Replace each (on the CPU) by its sum over all processes. All must call it with tensors of the same shapes."""
    for tensor in tensors if group else []:
        distributed.all_reduce(tensor, group=group)
