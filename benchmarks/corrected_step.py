"""What a corrected step costs beside the sum of its parts.

The whole step of `pid_corrected` (draws, two phases with optimisers, averages) and its parts (the fake's loss, PID's on its
share of the batch, the correction's on the rest, each forward and backward, without optimisers) take turns in one process.

    python -m benchmarks.corrected_step [--batch 64] [--share 0.5] [--pairs 6] [--write FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.harness import alternate, table, timed, write
from benchmarks.ours import device

from pidistill.jobs.build_objective import build_objective
from pidistill.models.teachers.base import load_teacher
from pidistill.training.batches import Microbatch, draw_batch
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.setup import place_objective
from pidistill.training.step import Step
from pidistill.training.unit import hold_constant


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--correction", default="distribution_matching")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    config = load_config(DistillConfig, "default", {
        "teacher": "bundled:digits", "train.batch": args.batch, "train.steps": 10**6, "out": "x",
        "objective": {"name": "pid_corrected", "share": args.share, "correction": args.correction}})
    objective = build_objective(config, load_teacher(config.teacher))
    place_objective(objective, device())
    step = Step(objective, config, device())
    parts: list[tuple[str, Any]] = []
    batches: dict[str, list[Microbatch]] = {}
    for number, phase in enumerate(objective.phases()):
        for k, (part, ks) in enumerate(zip(phase.parts, phase.split(args.batch), strict=True)):
            batch = draw_batch(part, number, 0, 0, ks, device())
            batches.setdefault(phase.name, []).append(Microbatch(k, batch))
            parts.append((part.name, lambda part=part, batch=batch, phase=phase: compute(objective, phase, part, batch)))

    def whole() -> None:
        queue = iter(batches.values())
        step(10**5, lambda: next(queue), args.batch)

    def apart() -> None:
        for _, call in parts:
            call()

    ratio = alternate(whole, apart, args.pairs)
    rows = [[name, f"{1000 * min(timed(call) for _ in range(3)):.0f}"] for name, call in parts]
    rows += [["sum of the parts, in turn with the step", f"{1000 * ratio.seconds[1]:.0f}"],
             ["the step", f"{1000 * ratio.seconds[0]:.0f}"], ["the step / the sum", str(ratio)]]
    write(args.write, table([f"digits, batch {args.batch}, share {args.share:g}", "ms"], rows))


def compute(objective: Any, phase: Any, part: Any, batch: Any) -> None:
    """Forward and backward pass of a part."""
    with hold_constant(objective, phase):
        part.loss(batch, 10**5).mean().backward()
    for name in phase.trains:
        for p in objective.networks[name].parameters():
            p.grad = None


if __name__ == "__main__":
    main()
