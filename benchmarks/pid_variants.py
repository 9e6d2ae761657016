"""Does any of some known variants of PID's loss, draws or optimiser distil the bundled digits better in the same steps?

    python -m benchmarks.pid_variants --results FILE.jsonl [--cache FILE.safetensors] [--only NAME ...] [--seeds 0 1]

Every variant differs from the preset `digits` in what its name says, and starts from the same weights. Runs of one training
seed draw the same z and labels in every step, and the same times where the variant does not draw them otherwise. Each run
is one line of the results file, written when it ends; what is there already is not run again. The table of the file is
printed last. Measured is the student's average (EMA 0.9) on the 5,000 seeds 0-4999, which training never uses: FD (per
cent, see README) and r.m.s. distance to the teacher's own Heun solution (35 evaluations). The rows `SOAP` need the library
pytorch-optimizer.

The variants are here and not in the package. Those that keep a table of losses break two of its contracts: their draws or
weights depend on the losses of the steps before, so neither microbatches nor a resumption leave them as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from benchmarks.harness import table
from benchmarks.short_runs import Optimizers, train
from torch import Tensor, nn

from pidistill.core.provenance import find_commit, list_versions
from pidistill.evaluation.evaluate import Evaluator
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Batch, Follower, Objective, Sample, Setup
from pidistill.objectives.pid import PID, pid_residual
from pidistill.training.config import DistillConfig, OptimizerConfig
from pidistill.training.config_file import load_config
from pidistill.training.optimizer import make_optimizer


class Pairs:
    """The interval of every sample, in the place of a grid: times t_0, u_0, t_1, u_1, ..., and i = 0, 2, 4, ...

    Schemes that take t[i] and t[i + 1] (upwind, midpoint) then take the interval (t_b, u_b) for sample b.
    """

    def __init__(self, t: Tensor, u: Tensor):
        self.t = torch.stack([t, u], dim=1).flatten()

    def place(self, i: Tensor) -> tuple[Tensor, Tensor]:
        return self.t, i


class Jittered(PID):
    """t = t(s), s uniform on [i - 1/2, i + 1/2) within [0, N - 1], where t(s) is the formula of the grid; u = t(s + 1).

    Where s + 1 is beyond the end, u = t(s - 1), as on the grid.
    """

    def __init__(self, setup: Setup, *, distance: Any = "l2"):
        super().__init__(setup, distance=distance)
        teacher = setup.teacher
        self.roots = teacher.t_max ** (1 / teacher.rho), teacher.t_min ** (1 / teacher.rho), teacher.rho

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = super().draw(rng, step)  # the draws of the preset come first
        return sample | {"shift": np.float64(rng.random() - 0.5)}

    def compute_sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        last = self.grid.points - 1
        s = (batch["i"] + batch["shift"]).clamp(0, last)
        pairs: Any = Pairs(self.time(s), self.time((s + 1).where(s + 1 <= last, s - 1)))
        student: Any = self.networks["student"]
        return pid_residual(student, self.call_teacher, batch["z"], 2 * torch.arange(len(s)), pairs, self.scheme,
                            batch["labels"])

    def time(self, s: Tensor) -> Tensor:
        """Karras et al. (2022), Eq. (5), between grid points. s: (B,) in 0 ... N - 1."""
        high, low, rho = self.roots
        return (high + s / (self.grid.points - 1) * (low - high)) ** rho


class Table:
    """Running means of the loss at the N grid points, each smoothed over its neighbours.

    keep: what a step leaves of the sums and counts of the steps before: 0.9 remembers the last 10 steps, with 64 samples
        each 2.6 samples a point.
    width: standard deviation, in points, of the Gaussian that smooths: a mean is then of some 20 samples.
    """

    def __init__(self, points: int, keep: float = 0.9, width: float = 3.0):
        self.keep, self.sums, self.counts = keep, np.zeros(points), np.zeros(points)
        k = np.arange(points)
        self.kernel = np.exp(-0.5 * ((k[:, None] - k) / width) ** 2)

    def add(self, i: Tensor, e: Tensor) -> None:
        """Take in the losses e (B,) of a step at the points i (B,)."""
        points = len(self.sums)
        self.sums = self.keep * self.sums + np.bincount(i.numpy(), e.detach().double().numpy(), points)
        self.counts = self.keep * self.counts + np.bincount(i.numpy(), minlength=points)

    def means(self) -> np.ndarray:
        """Give the means (N,), all 1 before the first step."""
        if not self.counts.any():
            return np.ones(len(self.sums))
        return (self.kernel @ self.sums + 1e-12) / (self.kernel @ self.counts + 1e-12)


class Drawn(PID):
    """i is drawn with p_i = 0.9 L_i / sum L + 0.1 / N, L the table's means.

    weigh: multiply the loss by 1/(N p_i), which makes it an unbiased estimate of the loss with uniform draws.
    """

    def __init__(self, setup: Setup, *, distance: Any = "l2", weigh: bool):
        super().__init__(setup, distance=distance)
        self.weigh, self.table, self.cached = weigh, Table(self.grid.points), (-1, np.empty(0))

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = super().draw(rng, step)
        if self.cached[0] != step:
            means = self.table.means()
            self.cached = step, 0.9 * means / means.sum() + 0.1 / len(means)
        p = self.cached[1]
        # The uniform number whose place on the grid the preset takes; with equal p it is the same place.
        u = (sample["i"] + rng.random()) / len(p)
        i = min(int(np.searchsorted(p.cumsum(), u, side="right")), len(p) - 1)
        return sample | {"i": np.int64(i), "weight": np.float32(1 / (len(p) * p[i]))}

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        e = super().loss(batch, step)
        self.table.add(batch["i"], e)
        return e * batch["weight"] if self.weigh else e


class Causal(PID):
    """Each loss is multiplied by w_i = exp(-decay sum_{j < i} L_j / N): Wang et al. (2022), Eq. 14, from T downwards.

    L_j are the table's means, so the sum over N is the mean loss if the times that are nearer to T had all of it.
    """

    def __init__(self, setup: Setup, *, distance: Any = "l2", decay: float):
        super().__init__(setup, distance=distance)
        self.decay, self.table = decay, Table(self.grid.points)

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        e = super().loss(batch, step)
        self.table.add(batch["i"], e)
        means = self.table.means()
        weights = np.exp(-self.decay * (means.cumsum() - means) / len(means))
        return e * torch.from_numpy(weights)[batch["i"]].to(e)


class Averaged(PID):
    """The target is D(y, t), y the state of a follower of the student at t; it costs the follower's evaluation."""

    def __init__(self, setup: Setup, *, distance: Any = "l2", rate: float = 0.9):
        super().__init__(setup, distance=distance)
        ramp = lambda step: min(rate, (1 + step) / (10 + step))  # as of the averages
        Objective.__init__(self, self.networks, self.calls, {"slow": Follower("student", ramp)})

    def compute_sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        student: Any = self.networks["student"]
        slow, z = self.copies["slow"], batch["z"]
        teacher = lambda x, t, labels: self.call_teacher(slow(z, t, labels), t, labels)
        return pid_residual(student, teacher, z, batch["i"], self.grid, self.scheme, batch["labels"])


def make_soap(config: OptimizerConfig, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """SOAP (Vyas et al., 2024) with that paper's settings, without weight decay."""
    from pytorch_optimizer import SOAP
    return SOAP(parameters, lr=config.lr, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=10)


@dataclass(frozen=True)
class Variant:
    """settings: what differs from the preset. make: of the optimiser."""

    settings: dict[str, Any] = field(default_factory=dict)
    make: Optimizers = make_optimizer


def named(name: str, **options: Any) -> Variant:
    """A variant of the objective that is in this file; the distance is the preset's."""
    distance = {"name": "pseudo_huber", "c": 0.03}
    return Variant({"objective": {"name": f"python:benchmarks.pid_variants:{name}", "distance": distance, **options}})


VARIANTS: dict[str, Variant] = {
    "preset": Variant(),
    "times between grid points": named("Jittered"),
    "draws by loss": named("Drawn", weigh=False),
    "draws by loss, importance weights": named("Drawn", weigh=True),
    "causal weights, eps 1": named("Causal", decay=1.0),
    "causal weights, eps 5": named("Causal", decay=5.0),
    "target at the averaged student's state": named("Averaged"),
    "RAdam, beta2 0.95": Variant({"optimizer.betas": [0.9, 0.95]}),
    "SOAP, rate 1e-3": Variant({"optimizer.lr": 1e-3}, make_soap),
    "SOAP, rate 3e-3": Variant({"optimizer.lr": 3e-3}, make_soap),
    "SOAP, rate 1e-2": Variant({"optimizer.lr": 1e-2}, make_soap),
    "balance 0.5": Variant({"objective.balance": 0.5}),
    "balance 0.75": Variant({"objective.balance": 0.75}),
    "L2, balance 0.5": Variant({"objective": {"name": "pid", "balance": 0.5}}),
    "L2, balance 0.75": Variant({"objective": {"name": "pid", "balance": 0.75}}),
}


def show(records: list[dict[str, Any]], steps: int) -> str:
    """The table of the records of runs of so many steps; all seeds in a cell."""
    rows = []
    for name in VARIANTS:
        runs = sorted((r for r in records if r["variant"] == name and r["steps"] == steps), key=lambda r: r["seed"])
        if runs:
            join = lambda key, digits, runs=runs: ", ".join(f"{r[key]:.{digits}f}" for r in runs)
            middle = f"{mean(r['fd'] for r in runs):.2f}" if len(runs) > 1 else "one seed"
            rows.append([name, join("fd", 2), middle, join("trajectory_rmse", 4),
                         join("cpu_seconds", 0), join("seconds", 0)])
    return table(["variant", "FD %, each seed", "mean", "r.m.s. to teacher", "processor s", "s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--cache", type=Path, help="keeps the teacher's images")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--num", type=int, default=5000)
    args = parser.parse_args()
    records = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(r["variant"], r["seed"], r["steps"], r["num"]) for r in records}
    evaluator = None
    for seed in args.seeds:
        for name in args.only:
            key = dict(zip(("variant", "seed", "steps", "num"), (name, seed, args.steps, args.num), strict=True))
            if tuple(key.values()) in done:
                continue
            evaluator = evaluator or Evaluator(load_teacher("bundled:digits"), num=args.num, features="digits",
                                               cache=args.cache)
            variant = VARIANTS[name]
            run = train(load_config(DistillConfig, "digits", {**variant.settings, "train.seed": seed,
                                                              "train.steps": args.steps}), variant.make)
            record = key | evaluator(run.average) | {
                "loss": run.loss, "cpu_seconds": run.cpu_seconds, "seconds": run.seconds,
                "commit": find_commit(), "torch": list_versions()["torch"], "threads": torch.get_num_threads()}
            with args.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            records.append(record)
            print(record, file=sys.stderr, flush=True)
    print(show(records, args.steps))


if __name__ == "__main__":
    main()
