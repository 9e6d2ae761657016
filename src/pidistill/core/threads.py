"""Work runs ahead in other threads: noise, the way over the bus and files, while the network draws the next images."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_ahead(function: Callable[[T], R], tasks: Iterable[T], threads: int, depth: int) -> Generator[R, None, None]:
    """Yield function(task) of one task after the other, in order, computed by other threads.

    The tasks are taken in the caller's thread. An error of the function is raised there too; calls that have not begun are
    dropped then, and also on Ctrl-C or when the caller leaves off.

    function: what the threads call.
    tasks: its arguments.
    threads: how many threads there are.
    depth: how many results at most are in work or wait to be taken.
    """
    pool = ThreadPoolExecutor(threads)
    queue: deque[Future[R]] = deque()
    try:
        for task in tasks:
            queue.append(pool.submit(function, task))
            if len(queue) > depth:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
