"""An objective as a distillation's settings name it: over a new student, with the images that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.registry import build
from pidistill.files.datasets import ImageSet, open_images
from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import Grid
from pidistill.models.student import Student
from pidistill.models.student_init import make_student
from pidistill.objectives.base import Objective, Setup, check_contract, find_objective
from pidistill.training.config import DistillConfig
from pidistill.training.recompute import find_recomputable_blocks


def build_objective(config: DistillConfig, teacher: Denoiser, device: str = "cpu",
                    previous: Path | None = None, net: dict[str, Any] | None = None) -> Objective:
    """Build the objective over a new student of the teacher.

    teacher: that the student learns from; in a later stage it may be the student of the one before.
    device: `meta` for a dry run, else `cpu`.
    previous: the folder of the stage before, for `student.init=previous`.
    net: its student's network, if that is of the user's own.

    Raises PidistillError for settings that cannot be had together.
    """
    torch.manual_seed(config.train.seed)  # initial weights, where they are random
    grid = Grid(teacher.grid_times(config.grid.points))
    if grid.points < config.grid.points:
        console.print(f"grid.points={config.grid.points}: {grid.points} different ones among the teacher's noise levels")
    options = dict(config.objective)
    name = options.pop("name")
    member = find_objective(name)
    data = open_data(config, member, name, teacher)
    with torch.device(device):
        student = make_objective_student(config, teacher, data, previous, net)
        setup = Setup(student, teacher, grid, data, config.train.recompute)
        objective: Objective = build("objectives", name, setup, **options)
    check_contract(objective)
    if "student" not in objective.averaged:
        raise PidistillError(f"the objective {name} must average its `student`: that is what a distillation draws and saves")
    if config.train.recompute:
        find_recomputable_blocks(objective.networks.values())
    return objective


def make_objective_student(config: DistillConfig, teacher: Denoiser, data: ImageSet | None = None,
                           previous: Path | None = None, net: dict[str, Any] | None = None) -> Student:
    """Make the student of a run as it begins: as the settings say, in the form of their objective.

    data: of the run, which objectives that need trajectories take times from.
    Other parameters: `build_objective`.
    """
    options = dict(config.objective)
    member = find_objective(options.pop("name"))
    init, named, width = config.student.init, config.student.net, config.student.width
    if previous and init == "previous":  # with that one's network
        init, named, width = str(previous), net, 1.0
    return make_student(teacher, init, named, width, **member.plan_student(teacher, options, data))


def open_data(config: DistillConfig, member: type[Objective], name: str, teacher: Denoiser) -> ImageSet | None:
    """Open the images, or pairs, that an objective needs; None if it needs none. Raises PidistillError if they do not suit.

    config: of the run.
    member, name: the objective's class, and its name for errors.
    """
    data = config.data
    if member.needs == "noise":
        if data is not None:
            raise PidistillError(f"the objective {name} needs no images; leave `data` out")
        return None
    if data is None:
        raise PidistillError(f"the objective {name} needs images: data=..., a folder, a .zip, an .npz or `digits`")
    if teacher.decoder:
        raise PidistillError(f"the objective {name} needs images, and this teacher draws latents: there is no encoder here")
    images = open_images(data)
    if images.shape != teacher.shape:
        raise PidistillError(f"{data} has images of shape {images.shape}, the teacher's are {teacher.shape}")
    if teacher.num_classes and not 0 < images.num_classes <= teacher.num_classes:
        raise PidistillError(f"{data} has {images.num_classes or 'no'} classes, the teacher {teacher.num_classes}")
    return images
