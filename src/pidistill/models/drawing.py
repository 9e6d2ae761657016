"""Images are drawn batch by batch, while other threads draw the next noise and the last images cross the bus.

Image k is draw(noise(seeds[k]), labels[k], seeds[k]), whatever the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of, noise
from pidistill.core.tensors import send
from pidistill.core.threads import count_cores, run_ahead


@torch.inference_mode()
def draw_batches(draw: Callable[[Tensor, Tensor | None, Sequence[int]], Tensor], seeds: Sequence[int], labels: Tensor | None,
                 shape: Sequence[int], device: torch.device, *, batch_size: int,
                 draw_noise: Callable[[Sequence[int], Sequence[int]], Tensor] = noise) -> Generator[Tensor, None, None]:
    """Yield draw(noise, labels, seeds) of each batch, (B, ...) on the CPU, in the order of the seeds.

    Noise of the next batches is drawn meanwhile. A GPU is given the next batch before the last one is waited for, so it
    never waits for the host; the images of at most two batches are on it.

    draw: noise (B, *shape), labels (B,) or None and seeds of a batch -> images (B, ...); the tensors are on the device.
    labels: (len(seeds),) int64, or None for unconditional models.
    shape: of one sample, (C, H, W).
    draw_noise: seeds and shape -> noise (B, *shape).
    """
    fast = device.type == "cuda"  # a CPU needs far longer for an image than one thread for its noise (44 us for 32x32)
    threads = min(4, count_cores()) if fast else 1
    starts = range(0, len(seeds), batch_size)

    def prepare(k: int) -> Tensor:
        z = draw_noise(seeds[k:k + batch_size], shape)
        return z.pin_memory() if fast else z

    copies: deque[tuple[Tensor, torch.cuda.Event]] = deque()  # on their way to the CPU
    with closing(run_ahead(prepare, starts, threads, threads)) as noises:
        for k, z in zip(starts, noises):
            y = None if labels is None else send(labels[k:k + batch_size], device)
            x = draw(z.to(device, non_blocking=fast), y, seeds[k:k + batch_size])
            x = x.to("cpu", non_blocking=fast)
            if not fast:
                yield x
                continue
            copies.append((x, torch.cuda.current_stream(device).record_event()))
            if len(copies) > 1:
                yield wait_for_copy(*copies.popleft())
        while copies:
            yield wait_for_copy(*copies.popleft())


def wait_for_copy(x: Tensor, end: torch.cuda.Event) -> Tensor:
    """Give x once the event, which its copy to the CPU ends with, has happened."""
    end.synchronize()
    return x


def gather(batches: Iterable[Tensor], num: int, shape: Sequence[int]) -> Tensor:
    """Join batches (B, *shape) into one tensor (num, *shape), float32, without ever holding them twice.

    Raises PidistillError for batches of another shape, which would be broadcast.
    """
    whole, k = torch.empty(num, *shape), 0
    for batch in batches:
        if tuple(batch.shape[1:]) != tuple(shape):
            raise PidistillError(f"images must have the shape {tuple(shape)}, got {tuple(batch.shape[1:])}")
        whole[k:k + len(batch)] = batch
        k += len(batch)
    return whole


def choose_labels(labels: Tensor | Sequence[int] | int | None, num_classes: int, seeds: Sequence[int]) -> Tensor | None:
    """Give labels (B,) int64 to B seeds: those named, repeated, else the seeds' own; None for unconditional models.

    Raises PidistillError for labels outside the classes, a wrong number of them, or an unconditional model.
    """
    if labels is None:
        return labels_of(seeds, num_classes)
    if not num_classes:
        raise PidistillError("labels were given but the model is unconditional (num_classes = 0)")
    labels = torch.as_tensor(labels, dtype=torch.int64).flatten()
    if not len(labels) or len(seeds) % len(labels):
        raise PidistillError(f"{len(labels)} labels for {len(seeds)} images; give one, or a number that divides them")
    labels = labels.repeat(len(seeds) // len(labels))
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise PidistillError(f"label {int(outside[0])} is outside the classes 0-{num_classes - 1}")
    return labels
