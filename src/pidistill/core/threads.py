"""Images drawn batch by batch, with their noise, their way over the bus and their files in other threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor

from pidistill.core.seeds import noise
from pidistill.core.tensors import send

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(function: Callable[[T], R], parts: Iterable[T], threads: int, depth: int) -> Generator[R, None, None]:
    """function(part) of each part, in order, by other threads; at most `depth` results are in work or wait to be taken.

    The parts are taken in the caller's thread. An error of the function is raised there too; what has not begun is dropped
    then, and also on Ctrl-C or when the caller leaves off.
    """
    pool = ThreadPoolExecutor(threads)
    begun: deque[Future[R]] = deque()
    try:
        for part in parts:
            begun.append(pool.submit(function, part))
            if len(begun) > depth:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def drawn(draw: Callable[[Tensor, Tensor | None, Sequence[int]], Tensor], seeds: Sequence[int], labels: Tensor | None,
          shape: Sequence[int], device: torch.device, *, batch_size: int) -> Generator[Tensor, None, None]:
    """draw(noise (B, *shape), labels (B,), seeds) of each batch, (B, ...) on the CPU, in the order of the seeds.

    Noise of the next batches is drawn meanwhile. A GPU is given the next batch before the last one is waited for, so it
    never waits for the host; the images of at most two batches are on it.
    """
    fast = device.type == "cuda"  # a CPU needs far longer for an image than one thread for its noise (44 us for 32x32)
    threads = min(4, cores()) if fast else 1
    starts = range(0, len(seeds), batch_size)

    def prepare(k: int) -> Tensor:
        z = noise(seeds[k:k + batch_size], shape)
        return z.pin_memory() if fast else z

    behind: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    with closing(ahead(prepare, starts, threads, threads)) as prepared:
        for k, z in zip(starts, prepared):
            y = None if labels is None else send(labels[k:k + batch_size], device)
            x = draw(z.to(device, non_blocking=True), y, seeds[k:k + batch_size])
            x = x.to("cpu", non_blocking=fast)
            if not fast:
                yield x
                continue
            behind.append((x, torch.cuda.current_stream(device).record_event()))
            if len(behind) > 1:
                yield arrived(*behind.popleft())
        while behind:
            yield arrived(*behind.popleft())


def arrived(x: Tensor, copied: torch.cuda.Event) -> Tensor:
    copied.synchronize()
    return x


def gather(parts: Iterable[Tensor], num: int, shape: Sequence[int]) -> Tensor:
    """The parts as one tensor (num, *shape), float32: never twice in memory."""
    whole, k = torch.empty(num, *shape), 0
    for part in parts:
        whole[k:k + len(part)] = part
        k += len(part)
    return whole
