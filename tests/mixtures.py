"""A mixture of four Gaussians in the plane, whose denoiser has a closed form, to measure what one-step students draw."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pidistill.core.tensors import like
from pidistill.jobs.build_objective import build_objective
from pidistill.jobs.distill import run_distillation
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.runs import train_student

SPEC, NUM = "gaussian:2,modes=4,std=0.1", 20_000
SEEDS = range(10**6, 10**6 + NUM)  # no training draws them
ANGLES = torch.arange(64) * math.pi / 64
# The settings of a short run with a small network that begins at random; the objective's own come beside them.
QUICK = {"teacher": SPEC, "grid.points": 100, "optimizer.clip": 1.0, "optimizer.decay": "cosine", "student.init": "random",
         "student.net": {"name": "mlp", "width": 64, "depth": 3}, "train.batch": 128, "optimizer.lr": 4e-3}


def distil_mixture(folder: Path, seed: int, values: dict[str, Any]) -> Student:
    """Distil the mixture in QUICK's settings and these, pairs and stages included; the student that the folder ends with."""
    common = {"ema": 0.95, "log.every": 1000, "preview.every": 10**6, "evaluate.num": 4, "train.seed": seed}
    run_distillation(load_config(DistillConfig, "default", QUICK | common | {"out": str(folder)} | values))
    return load_student(folder)


def measure_start(seed: int, exact: torch.Tensor, form: str = "denoiser") -> float:
    """The distance from exact draws of what a student of QUICK's network draws before it is trained."""
    torch.manual_seed(seed)
    student = make_student(load_teacher(SPEC), "random", QUICK["student.net"], form=form)
    return sliced_wasserstein(student.sample(SEEDS), exact)


def draw_exactly(teacher, seed: int, num: int = NUM) -> torch.Tensor:
    """Draw from the mixture itself, (num, *shape). Two such sets of 20,000 are less than 0.01 apart."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(len(teacher.means), (num,), generator=generator)
    return teacher.means[k] + like(teacher.scales[k], teacher.means) * torch.randn(num, *teacher.shape, generator=generator)


def sliced_wasserstein(x: torch.Tensor, y: torch.Tensor) -> float:
    """The distance W_1 of projections of x and y (N, ...), the mean over 64 directions, which are even in the plane."""
    x, y = x.flatten(1), y.flatten(1)
    directions = torch.stack([ANGLES.cos(), ANGLES.sin()]) if x.shape[1] == 2 else F.normalize(
        torch.randn(x.shape[1], 64, generator=torch.Generator().manual_seed(0)), dim=0)
    return ((x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values).abs().mean().item()


def measure_gain(folder, values: dict) -> tuple[float, float]:
    """Train on the mixture in a new folder; the sliced Wasserstein distances of its student as it began, and as it is."""
    teacher = load_teacher(SPEC)
    exact = draw_exactly(teacher, 1)
    start = build_objective(load_config(DistillConfig, "default", {"out": str(folder)} | values), teacher)
    before = sliced_wasserstein(start.networks["student"].sample(SEEDS), exact)
    after = sliced_wasserstein(train_student(folder, teacher, values).sample(SEEDS), exact)
    print(f"sliced Wasserstein distance {before:.4f} untrained, {after:.4f} trained")
    return before, after
