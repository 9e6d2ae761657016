"""Which settings distil the bundled digits best in a given number of steps? The choice behind the preset `digits`.

    python -m benchmarks.digits_preset --steps 150 [--only NAME ...] [--write benchmarks/results/digits_preset.md]

Every variant differs from the preset in what its name says, starts from the same weights, sees the same draws (seed 0)
and is measured on the same 5,000 seeds that training never uses: FD (per cent, see README) and r.m.s. distance to the
teacher's own Heun solution (35 evaluations), for the raw weights and for their average.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from benchmarks.short_runs import train

from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.seeds import labels_of
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.metrics.trajectory_rmse import rmse
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config

BALANCED = {"name": "pid", "balance": 0.75}
VARIANTS: dict[str, dict[str, Any]] = {
    "preset (pseudo-Huber, c 0.03)": {},
    "L2, balance 0.75": {"objective": BALANCED},
    "the paper's rate and L2 (2e-4, constant, balance 0)": {
        "objective": "pid", "optimizer.lr": 2e-4, "optimizer.decay": "constant"},
    "L2, balance 0": {"objective": "pid"},
    "L2, balance 0.5": {"objective": {"name": "pid", "balance": 0.5}},
    "L2, balance 1": {"objective": {"name": "pid", "balance": 1.0}},
    "L1, balance 0": {"objective.distance": "l1"},
    "L2, balance 0.75, rate 5e-3": {"objective": BALANCED, "optimizer.lr": 5e-3},
    "L2, balance 0.75, rate 2e-2": {"objective": BALANCED, "optimizer.lr": 2e-2},
    "L2, balance 0.75, constant rate": {"objective": BALANCED, "optimizer.decay": "constant"},
    "pseudo-Huber, c 0.03, constant rate, EMA 0.95": {"optimizer.decay": "constant", "ema": 0.95},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    base = load_config(DistillConfig, "digits")
    seeds = range(args.num)
    teacher, measure = load_teacher(base.teacher), Measure("digits", None, (1, 16, 16))
    labels = labels_of(seeds, teacher.num_classes)
    solutions = sample_teacher(teacher, seeds, labels)
    fd = lambda images: measure(images)["fd"]
    lines = [f"`python -m benchmarks.digits_preset --steps {args.steps}`, {args.num} seeds, "
             f"{torch.get_num_threads()} threads, "
             f"commit {find_commit()[:12]}, torch {list_versions()['torch']}. Teacher: FD {fd(solutions):.2f}.", "",
             "| variant | last loss | rms raw | rms average | FD raw | FD average | s |", "|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name in args.only:
        run = train(load_config(DistillConfig, "digits", {**VARIANTS[name], "train.steps": args.steps}))
        images = [model.sample(seeds, labels, clip=False) for model in (run.raw, run.average)]
        rms, fds = [rmse(x, solutions) for x in images], [fd(x) for x in images]
        lines.append(f"| {name} | {run.loss:.4f} | {rms[0]:.4f} | {rms[1]:.4f} | {fds[0]:.2f} | {fds[1]:.2f} | "
                     f"{run.seconds:.0f} |")
        print(lines[-1], flush=True)
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
