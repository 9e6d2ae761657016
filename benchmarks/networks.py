"""Networks of the published sizes with random weights: what a step costs does not depend on their values."""

from __future__ import annotations

import atexit
import copy
import functools
import math
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from pidistill.core.precision import Autocast
from pidistill.models.denoiser import Preconditioned
from pidistill.models.grid import Grid
from pidistill.models.student import Student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import build_network_teacher, load_teacher
from pidistill.models.teachers.edm import CHECKPOINTS
from pidistill.objectives.distances.lpips import LPIPS, STAGES

NAMES = {"cifar10": "cifar10-32x32-uncond-vp", "imagenet64": "imagenet-64x64-cond-adm"}


@torch.no_grad()
def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Layers that begin at (or near) zero get weights of the usual size, so that no part of the network is idle."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.ndim > 1 and p.abs().mean() < 1e-3:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 / math.sqrt(p[0].numel()))
    return net


def teacher_of(name: str) -> Preconditioned:
    """`digits` (with its own weights), `cifar10` or `imagenet64`."""
    if name == "digits":
        digits = load_teacher("bundled:digits")
        assert isinstance(digits, Preconditioned)
        return digits
    torch.manual_seed(0)
    teacher = build_network_teacher(**CHECKPOINTS[NAMES[name]])
    lively(teacher.model)
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def student_of(teacher: Preconditioned, seed: int = 1) -> Student:
    """The teacher's network, one hundredth of each weight away from it, as after some training."""
    student = make_student(copy.deepcopy(teacher))
    generator = torch.Generator().manual_seed(seed)
    for p in student.parameters():
        p *= 1 + 0.01 * torch.randn(p.shape, generator=generator)
    return student


def batch_of(teacher: Preconditioned, grid: Grid, batch: int, seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = {"z": torch.randn(batch, *teacher.shape, generator=generator) * teacher.t_max,
              "i": torch.randint(grid.points, (batch,), generator=generator)}
    if teacher.num_classes:
        sample["labels"] = torch.randint(teacher.num_classes, (batch,), generator=generator)
    return sample


@functools.cache
def vgg_file() -> Path:
    """VGG16's convolutions with random weights (He et al., 2015), under torchvision's names; 60 MB, while this runs."""
    path = Path(tempfile.mkdtemp(prefix="pidistill-benchmark-")) / "vgg16.pth"
    generator, state, place, channels = torch.Generator().manual_seed(0), {}, 0, 3
    for width, depth in STAGES:
        for _ in range(depth):
            shape = (width, channels, 3, 3)
            state[f"features.{place}.weight"] = torch.randn(shape, generator=generator) * math.sqrt(2 / (9 * channels))
            state[f"features.{place}.bias"] = torch.randn(width, generator=generator) * 0.1
            place, channels = place + 2, width
        place += 1
    torch.save(state, path)
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    return path


def lpips(precision: Autocast = "fp32", size: int = 224) -> LPIPS:
    return LPIPS(weights=str(vgg_file()), precision=precision, size=size)
