"""The memory that is free decides how many images a network takes at a time."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import Tensor, nn

FASTEST_BATCH = {"cpu": 250, "cuda": 1024}  # more is no faster
# A CPU is slower once a batch's activations outgrow this: on one core of an EPYC, EDM's CIFAR-10 network (95 MB an image)
# took 0.53 s an image in batches of 8 and 0.63 to 0.73 s from 16 on; the digits' (1 MB) was fastest at 250
# (`benchmarks/sampling.py --batches` takes these times).
CPU_WORKING_SET = 800e6  # bytes


def fit_batch_size(network: nn.Module, device: torch.device) -> int:
    """Choose how many images go through a network without gradients: as many as half the free memory holds, up to what is
    fastest.

    The reckoning frees nothing that one image makes in the network, so it asks for several times what is needed. A batch
    that is still too large for a GPU is halved when it fails (`Subject.run`). A network that takes other inputs than ours
    gets `FASTEST_BATCH`.
    """
    fastest = FASTEST_BATCH.get(device.type, 250)
    shape = getattr(network, "shape", None)
    if shape is None:
        return fastest
    image_bytes = max(count_bytes_per_image(network, shape, device), 1)
    if device.type == "cuda":
        return int(max(1, min(fastest, torch.cuda.mem_get_info(device)[0] / 2 // image_bytes)))
    return int(max(1, min(fastest, psutil.virtual_memory().available / 2 // image_bytes,
                          max(CPU_WORKING_SET // image_bytes, 8))))


@torch.inference_mode()
def count_bytes_per_image(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> int:
    """Add up the bytes of all that the network's modules put out for one image of shape (C, H, W)."""
    total = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.nbytes

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    try:
        labels = torch.zeros(1, dtype=torch.int64, device=device) if getattr(network, "num_classes", 0) else None
        network(torch.zeros(1, *shape, device=device), network.t_max, labels)
    finally:
        for hook in hooks:
            hook.remove()
    return total
