"""(a) A step of PID against a plain transcription of Algorithm 1, in turn in one program: time, loss and gradient.

The plain step is `reference_step.py`: two student passes, one of the teacher, two of VGG16, PyTorch's operators one by one,
in float32 (on NVIDIA GPUs with TF32 convolutions, PyTorch's default), its RAdam and an average. Ours is `step.Step`, what
`pidistill distill` runs. Both have the same networks (random weights of the published sizes; the bundled digits teacher) and
the same noise. Gradient: cosine between both, and size of their difference.

    python -m benchmarks.step --network cifar10 --distance lpips --batch 4 [--set precision=fp16 ...]
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from benchmarks import networks
from benchmarks.harness import Ratio, alternate, table, write
from benchmarks.ours import LONG, device, step_of
from benchmarks.reference_step import PlainLPIPS, ReferenceStep, plain_networks
from torch import Tensor, nn

from pidistill.core.precision import autocast, set_float32_products
from pidistill.models.grid import Grid
from pidistill.objectives.base import Setup
from pidistill.objectives.distances.l2 import L2
from pidistill.objectives.pid import PID
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config


def gradients(network: nn.Module) -> list[Tensor]:
    """They are gone afterwards."""
    found = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    return found


def dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum((x.double() * y.double()).sum().item() for x, y in zip(a, b, strict=True))


class Pair:
    """Ours and the plain step over the same networks and numbers."""

    def __init__(self, network: str, distance: str, batch: int, points: int = 250, options: dict[str, Any] | None = None):
        self.device = device()
        values = {"out": "x", "train.steps": 2 * LONG, "train.batch": batch, "ema": 0.99995, **(options or {})}
        self.config = load_config(DistillConfig, "default", values)
        teacher = networks.teacher_of(network).to(self.device)
        grid = Grid(teacher.grid_times(points))
        student = networks.student_of(teacher).to(self.device)
        self.batch = {key: value.to(self.device) for key, value in networks.batch_of(teacher, grid, batch).items()}
        chosen = dict(self.config.objective)
        chosen.pop("name")
        given = chosen.get("distance", {})
        given = {"name": distance} | (given if isinstance(given, dict) else {})
        if distance == "lpips":
            given["weights"] = str(networks.vgg_file())
        own = copy.deepcopy(teacher) if self.device.type == "cuda" else teacher  # there it is laid channels last
        setup = Setup(copy.deepcopy(student), own, grid, recompute=self.config.train.recompute)
        self.objective = PID(setup, **chosen | {"distance": given})
        self.step = step_of(self.objective, self.config)
        plain: Any = PlainLPIPS(networks.lpips()).to(self.device) if distance == "lpips" else L2()
        self.reference = ReferenceStep(student, teacher, plain, grid)

    def ours(self) -> None:
        set_float32_products(self.config.precision)
        micro = self.config.train.microbatch
        size = len(self.batch["z"])
        parts = [slice(k, k + micro) for k in range(0, size, micro)] if isinstance(micro, int) else [slice(None)]
        self.step(LONG, lambda: ((0, {key: value[part] for key, value in self.batch.items()}) for part in parts), size)

    def plain(self) -> None:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        with plain_networks():
            self.reference(self.batch)

    def agreement(self) -> tuple[float, float, float]:
        """Relative difference of the losses; cosine between the gradients, and size of their difference."""
        set_float32_products("fp32")
        with plain_networks():
            exact = self.reference.loss(self.batch)
            exact.backward()
        g = gradients(self.reference.student)
        set_float32_products(self.config.precision)
        with autocast(self.config.precision, self.device):
            loss = self.objective.loss(self.batch).mean()
        loss.backward()
        ours, size = gradients(self.objective.networks["student"]), dot(g, g)
        cosine = dot(ours, g) / (dot(ours, ours) * size) ** 0.5
        rest = [torch.sub(x, y) for x, y in zip(ours, g, strict=True)]
        return abs(loss.item() / exact.item() - 1), cosine, (dot(rest, rest) / size) ** 0.5


def row(network: str, distance: str, batch: int, pairs: int, options: dict[str, Any] | None = None) -> list[str]:
    pair = Pair(network, distance, batch, options=options)
    loss, cosine, rest = pair.agreement()
    ratio: Ratio = alternate(pair.ours, pair.plain, pairs)
    changed = ", ".join(f"{key}={value}" for key, value in (options or {}).items())
    seconds = f"{ratio.seconds[0]:.3g} / {ratio.seconds[1]:.3g}"
    return [network, distance, str(batch), changed, str(ratio), seconds, f"{loss:.1e}", f"1 - {1 - cosine:.1e}",
            f"{rest:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10", choices=["digits", "cifar10", "imagenet64"])
    parser.add_argument("--distance", default="lpips")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--all", action="store_true", help="the table of docs/performance.md")
    parser.add_argument("--set", action="append", default=[], help="a run's options, as of pidistill distill")
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    options = dict(pair.split("=", 1) for pair in a.set)
    cases = [("cifar10", "lpips", 4, a.pairs), ("cifar10", "l2", 4, a.pairs), ("digits", "l2", 64, 4 * a.pairs),
             ("imagenet64", "l2", 1, a.pairs)]
    rows = [row(*case, options) for case in (cases if a.all else [(a.network, a.distance, a.batch, a.pairs)])]
    head = ["network", "distance", "batch", "options", "ours / plain (quartiles)", "seconds", "loss differs by",
            "cosine of gradients", "gradients differ by"]
    write(a.write, table(head, rows))


if __name__ == "__main__":
    main()
