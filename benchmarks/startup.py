"""How long the command takes before it does anything: whole processes, and their imports.

Each verb runs in a process of its own, in turn with one that imports torch and ends, which no verb that draws can beat. The
ratio is of the processor's seconds (user and system), which a busy machine distorts less than the clock. `sample` draws
four images of the digits in one step each.

    python -m benchmarks.startup --write benchmarks/results/startup.md
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import table, write

from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher


def run(args: list[str]) -> tuple[float, float, str]:
    """Seconds on the clock and of the processor of one process, and what it wrote to stderr."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used, done.stderr


def imports(args: list[str]) -> list[str]:
    """Packages by their own import time, theirs and their parts' together: the five longest."""
    total: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", run(["-X", "importtime", *args])[2]):
        package = name.split(".")[0]
        total[package] = total.get(package, 0) + int(own) / 1e3
    return [f"{name} {ms:.0f} ms" for name, ms in sorted(total.items(), key=lambda pair: -pair[1])[:5]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        student, out = Path(folder) / "student", Path(folder) / "a.npz"
        make_student(load_teacher("bundled:digits")).save(student)
        verb = ["-m", "pidistill.cli"]
        commands = {"python": ["-c", "pass"], "import torch": ["-c", "import torch"], "--help": [*verb, "--help"],
                    "inspect STUDENT": [*verb, "inspect", str(student)],
                    "sample STUDENT --seeds 0-3": [*verb, "sample", str(student), "--seeds", "0-3", "--force",
                                                   "--out", str(out)]}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(args.turns + 1):
            for name in commands if turn % 2 else reversed(commands):
                seconds, used, _ = run(commands[name])
                if turn:  # the first fills the caches of the file system
                    times[name].append((seconds, used))
        rows = []
        for name, each in times.items():
            ratios = [mine[1] / torch[1] for mine, torch in zip(each, times["import torch"])]
            rows.append([name, *(f"{statistics.median(column):.2f}" for column in zip(*each)),
                         f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                         ", ".join(imports(commands[name])) if name != "python" else ""])
    write(args.write, table(["process", "s on the clock", "s of the processor", "ratio to `import torch`", "imports"], rows))


if __name__ == "__main__":
    main()
