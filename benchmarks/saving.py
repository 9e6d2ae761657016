"""What a checkpoint costs a run: steps with one in their midst against steps without, in turn.

    python -m benchmarks.saving --network digits --write benchmarks/results/saving-digits.md

The thread that writes, hashes and syncs shares the cores with the steps, so that all it takes is in the difference. `delay`
is how long the step itself waits: the check that all is finite, and the copy.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from accelerate import Accelerator
from benchmarks import harness, networks
from benchmarks.ours import Ours

from pidistill.training.checkpoint_writer import Checkpoints
from pidistill.training.setup import START, PreparedRun
from pidistill.training.trainer import Means, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="digits", choices=["digits", *networks.NAMES])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="in a turn; the checkpoint must be done within")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary one")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    ours = Ours(networks.teacher_of(options.network), options.batch)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    checkpoints, delays, k = Checkpoints(folder), [], 0
    run = PreparedRun(options.batch, Accelerator(), ours.step, START, [range(options.batch)])
    means = Means(run)

    def steps() -> None:
        for _ in range(options.steps):
            ours()

    def saved() -> None:
        nonlocal k
        k += 1
        ours()
        began = time.perf_counter()
        assert save(run, checkpoints, ours.config, means, k, final=False)
        delays.append(time.perf_counter() - began)
        for _ in range(options.steps - 1):
            ours()
        assert checkpoints.future and checkpoints.future.result() is None  # what is not done by now counts too

    try:
        ratio = harness.alternate(saved, steps, options.pairs)
        size = sum(path.stat().st_size for path in max(folder.iterdir()).iterdir())
    finally:
        checkpoints.close()
        shutil.rmtree(folder)
    cost = [(each - 1) * ratio.seconds[1] for each in (ratio.median, ratio.low, ratio.high)]  # seconds
    share = [f"{each / 60:.1%}" for each in cost]
    delay = statistics.median(delays[1:])
    harness.write(options.write, harness.table(["network, batch", "checkpoint", "a step waits", "a checkpoint costs",
                                                "of a run that writes one a minute"], [
        [f"{options.network}, {options.batch}", f"{size / 1e6:.0f} MB", f"{delay:.3f} s",
         f"{cost[0]:.2f} s ({cost[1]:.2f} to {cost[2]:.2f})", f"{share[0]} ({share[1]} to {share[2]})"]]))


if __name__ == "__main__":
    main()
