"""Kills the bundled run again and again, at random moments, and compares what comes out with the undisturbed run.

    python -m benchmarks.kills --kills 200 --write benchmarks/results/kills.md

SIGKILL reaches the program while it starts, trains, writes a checkpoint, saves the student or evaluates: a third of the
kills come at a moment of the first seconds, the others at one after training has begun. The same command line then goes on
(`--resume`). A run that comes to its end is compared, and the next one begins, until so many kills are done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import harness

from pidistill.training.checkpoint import list_checkpoints, newest
from pidistill.training.log import read_metrics

EVERY = 5  # steps between checkpoints
VOLATILE = ("seconds", "images_per_s")


def command(out: Path, more: list[str]) -> list[str]:
    settings = [f"checkpoint.every={EVERY}", "log.every=1", "evaluate.num=200", *more]
    return [sys.executable, "-m", "pidistill.cli", "distill", "--resume", "--out", str(out),
            *(part for each in settings for part in ("--set", each))]


def outcome(run: Path) -> dict[str, object]:
    """What two runs must have in common."""
    records = [{key: value for key, value in record.items() if key not in VOLATILE} for record in read_metrics(run)]
    last = list_checkpoints(run / "checkpoints")[-1]
    names = ["student.safetensors", *(path.name for kind in ("optimizer-*", "student-ema-*") for path in last.glob(kind))]
    return {"metrics": records, "student": (run / "student" / "model.safetensors").read_bytes(),
            "checkpoint": {name: (last / name).read_bytes() for name in names}, "last": last.name,
            "results": json.loads((run / "results.json").read_text())["student"]["trajectory_rmse"]}


def steps_done(run: Path) -> int:
    records = read_metrics(run)
    return records[-1]["step"] if records else 0


def training(run: Path, before: int, old: int) -> bool:
    """Whether a step was done since the metrics were of inode `old` (a run that goes on writes them anew)."""
    path = run / "metrics.jsonl"
    return (path.exists() and path.stat().st_ino != old and steps_done(run) > before) or (run / "student").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--window", type=float, default=8.0, help="seconds in which a kill comes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="settings, of both runs")
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)

    subprocess.run(command(options.out / "undisturbed", options.set), check=True)
    expected = outcome(options.out / "undisturbed")
    kills, finished, lost, early, failures = 0, 0, [], 0, []
    while kills < options.kills:
        run = options.out / f"run{finished}"
        while True:
            began_at = newest(run / "checkpoints")[0]
            before = int(began_at.name) if began_at else 0
            old = (run / "metrics.jsonl").stat().st_ino if (run / "metrics.jsonl").exists() else 0
            with (options.out / "log.txt").open("a") as log:
                process = subprocess.Popen(command(run, options.set), stdout=log, stderr=log, start_new_session=True)
            trained = (run / "student").exists()  # then only the evaluation is left, and comes to its end
            if kills < options.kills and not (trained and rng.random() < 0.5):
                if rng.random() > 1 / 3:
                    while process.poll() is None and not training(run, before, old):
                        time.sleep(0.02)
                time.sleep(rng.uniform(0, options.window))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            if code == -signal.SIGKILL:
                kills += 1
                done, left = steps_done(run), newest(run / "checkpoints")
                early += not training(run, before, old)
                lost.append(done - (int(left[0].name) if left[0] else 0))
                failures += left[1]
                print(f"kill {kills}: at step {done}, goes on from {left[0].name if left[0] else 0}", flush=True)
            elif code == 0:
                break
            else:
                raise SystemExit(f"exit code {code} after {kills} kills; see {options.out / 'log.txt'}")
        found = outcome(run)
        failures += [f"{run.name}: another {key}" for key in expected if found[key] != expected[key]]
        finished += 1
        print(f"{run.name} has come to its end; {kills} kills, failures: {failures or 'none'}", flush=True)
    harness.write(options.write, harness.table(["", ""], [
        ["kills", f"{kills}, of which {early} before a step was done"],
        ["that went on", f"{kills}: every one"],
        ["runs that came to their end", f"{finished}"],
        ["with weights, averages, optimiser and metrics (each line once) of the undisturbed run, bit for bit",
         f"{finished - len({failure.split(':')[0] for failure in failures})}"],
        ["checkpoints under their name that were not whole, other differences", f"{len(failures)}"],
        [f"steps lost by a kill (a checkpoint every {EVERY}), most", f"{max(lost)}"],
        ["on average", f"{sum(lost) / len(lost):.1f}"]]))


if __name__ == "__main__":
    main()
