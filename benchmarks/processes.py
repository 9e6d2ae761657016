"""(f) One process against two: samples a second of `pidistill.training.trainer.train` at the same global batch.

Each run is a job of its own (two processes: `torch.distributed.run`, gloo on the CPU, NCCL on two GPUs), and all kinds run
in turn. On the CPU every process has one thread. A step's time is taken from the run's own log, after --warm steps.
Efficiency is speed(2) / (2 speed(1)). `two apart` are two runs of half the batch at the same time that know nothing of
each other: what they lose is lost to the smaller batch and to the machine (memory bandwidth, clock, cores that are two
threads of one), not to the exchange of gradients.

    python -m benchmarks.processes [--network cifar10] [--batch 64] [--distance lpips]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from benchmarks import networks
from benchmarks.harness import table, write
from benchmarks.ours import pid

from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.log import read_metrics
from pidistill.training.trainer import train

BATCHES = {"digits": 64, "cifar10": 4, "imagenet64": 2}


def child(a: argparse.Namespace) -> None:
    """Train; the log in the folder says how long it took."""
    options = {"out": str(a.child), "train.steps": a.warm + a.steps, "train.batch": a.batch, "precision": a.precision,
               "compile": a.compile, "log.every": a.warm}
    objective = pid(networks.teacher_of(a.network), a.distance, precision=a.precision)
    a.child.mkdir(parents=True, exist_ok=True)
    train(objective, load_config(DistillConfig, "default", options), a.child)


def seconds(folder: Path, warm: int) -> float:
    """Of a step, on average over all after the first `warm`."""
    log = [record for record in read_metrics(folder) if "loss" in record]
    begin = next(record for record in log if record["step"] == warm)
    return (log[-1]["seconds"] - begin["seconds"]) / (log[-1]["step"] - warm)


def job(a: argparse.Namespace, folder: Path, batch: int, processes: int, gpu: int = 0) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "benchmarks.processes", "--child", str(folder), "--network", a.network,
               "--batch", str(batch), "--distance", a.distance, "--precision", a.precision, "--compile", a.compile,
               "--steps", str(a.steps), "--warm", str(a.warm)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if torch.cuda.device_count() < 2:
        env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    elif processes == 1:
        env["CUDA_VISIBLE_DEVICES"] = str(gpu)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(a: argparse.Namespace, kind: str) -> float:
    """Seconds that one step of the whole batch takes; of `two apart`, that the slower one's step of half of it takes."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(k) for k in range(2 if kind == "two apart" else 1)]
        half, processes = a.batch // len(folders), 2 if kind == "two" else 1
        jobs = [job(a, folder, half, processes, gpu=k) for k, folder in enumerate(folders)]
        try:
            for each, said in [(each, each.communicate()[0]) for each in jobs]:
                if each.returncode:
                    raise SystemExit(f"{kind}: {said[-2000:]}")
        finally:
            for each in jobs:
                each.terminate()  # of those that still run
        return max(seconds(folder, a.warm) for folder in folders)


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="digits", choices=list(BATCHES))
    parser.add_argument("--batch", type=int, help="of all processes together")
    parser.add_argument("--distance", default="l2")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.batch = a.batch or BATCHES[a.network]
    if a.child:
        child(a)
        return
    if a.batch % 2:
        parser.error(f"--batch must be even, got {a.batch}")

    kinds = ["one", "two", "two apart"]
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(a.turns):
        for kind in kinds if turn % 2 == 0 else kinds[::-1]:
            times[kind].append(run(a, kind))
    rows = []
    for kind in kinds:
        efficiency = [one / (2 * each) for one, each in zip(times["one"], times[kind], strict=True)]
        middle = statistics.median(times[kind])
        rows.append([kind, f"{middle:.3g}", f"{a.batch / middle:.3g}", "" if kind == "one" else quartiles(efficiency)])
    where = "NCCL" if torch.cuda.device_count() > 1 else "gloo, one thread a process"
    write(a.write, f"{a.network}, batch {a.batch}, {a.distance}; {where}.\n\n" + table(
        ["processes", "seconds a step", "samples/s", "efficiency (quartiles)"], rows))


if __name__ == "__main__":
    main()
