"""What all benchmarks share: A and B in turn within one run, ratios with their spread, the machine, a results file.

Machines are shared and noisy, so no time is compared with one of another run. `alternate` runs A, B, B, A, A, B, ... and
takes the ratio of each neighbouring pair; the median of those is the result, their quartiles its spread.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from pidistill.core.provenance import find_commit, list_versions


@dataclass(frozen=True)
class Ratio:
    """Of A's time to B's. seconds: medians of each."""

    median: float
    low: float
    high: float
    seconds: tuple[float, float]
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], pause: float = 0.0) -> float:
    """Seconds of one call, a GPU's work included. pause: seconds before it."""
    time.sleep(pause)
    synchronise()
    began = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - began


def alternate(a: Callable[[], Any], b: Callable[[], Any], pairs: int = 6, warm: int = 1, pause: float = 0.0) -> Ratio:
    """The ratio of a's time to b's, from calls in turn; each is called `warm` times before.

    pause: seconds before each call, in which threads of the other's library that still wait for work go to sleep.
    """
    for _ in range(warm):
        a(), b()
    times: list[tuple[float, float]] = []
    for k in range(pairs):
        first, second = (timed(f, pause) for f in ((a, b) if k % 2 == 0 else (b, a)))
        times.append((first, second) if k % 2 == 0 else (second, first))
    ratios = [x / y for x, y in times]
    low, _, high = statistics.quantiles(ratios, n=4) if pairs > 1 else (ratios[0],) * 3
    return Ratio(statistics.median(ratios), low, high,
                 (statistics.median(x for x, _ in times), statistics.median(y for _, y in times)), pairs)


def machine() -> str:
    """Processor or GPU, threads, PyTorch, commit: what a number is of."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
        known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
        wide = next((flag for flag in known if any(flag in line for line in lines)), "")
        name = f"{name}{f' ({wide})' if wide else ''}, {torch.get_num_threads()} of {os.cpu_count()} cores, " \
               f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return f"{name}; Python {platform.python_version()}, torch {list_versions()['torch']}; commit {find_commit()}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def write(path: Path | None, text: str) -> None:
    """Print a result under the command and the machine that gave it, and write it to a file if one is named."""
    shown = [part for k, part in enumerate(sys.argv) if k and "--write" not in (part, sys.argv[k - 1])]
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *shown])
    text = f"`{command}`: {machine()}.\n\n{text}\n"
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
