"""Images drawn batch by batch, with their noise, their way over the bus and their files in other threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def count_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_ahead(function: Callable[[T], R], parts: Iterable[T], threads: int, depth: int) -> Generator[R, None, None]:
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
