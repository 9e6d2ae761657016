"""(a) A step of PID against a plain transcription of Algorithm 1 (`reference_step.py`), in turn, on the same numbers.

    python benchmarks/step.py --network cifar10 --distance lpips --batch 4
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from benchmarks import networks
from benchmarks.harness import alternate
from benchmarks.reference_step import PlainLPIPS, ReferenceStep, plain_networks
from torch import Tensor

from pidistill.distances.l2 import L2
from pidistill.grid import Grid
from pidistill.objectives.pid import PID


def gradient(student: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="cifar10")
    parser.add_argument("--distance", default="lpips")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    teacher = networks.teacher_of(a.network)
    grid = Grid(teacher.grid_times(250))
    plain_student = networks.student_of(teacher)
    ours_student = copy.deepcopy(plain_student)
    batch = networks.batch_of(teacher, grid, a.batch)
    plain_distance: Any = PlainLPIPS(networks.lpips()) if a.distance == "lpips" else L2()
    reference = ReferenceStep(plain_student, teacher, plain_distance, grid)
    spec = {"name": "lpips", "weights": str(networks.vgg_file())} if a.distance == "lpips" else a.distance
    objective = PID(ours_student, teacher, grid, distance=spec)
    from pidistill.ema import EMA
    ema = EMA(objective.networks, [0.99995])
    optimizer = torch.optim.RAdam(objective.parameters(), lr=2e-4, foreach=True)

    def plain() -> Tensor:
        with plain_networks():
            return reference(batch)

    def ours() -> Tensor:
        loss = objective(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(100000)
        return loss.detach()

    with plain_networks():
        l0 = reference.loss(batch); l0.backward(); g0 = gradient(plain_student); plain_student.zero_grad()
    l1 = objective(batch).mean(); l1.backward(); g1 = gradient(ours_student); ours_student.zero_grad()
    print("loss", l0.item(), l1.item(), (l1/l0-1).item(), "gradient cos", torch.cosine_similarity(g0.double(), g1.double(), dim=0).item(), 'rel', ((g0-g1).norm()/g0.norm()).item())
    print(alternate(ours, plain, a.pairs))


if __name__ == "__main__":
    main()
