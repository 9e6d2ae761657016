"""An objective as a distillation's settings name it: over a new student, with the images that it needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.registry import build
from pidistill.files.datasets import open_images
from pidistill.files.image_set import ImageSet
from pidistill.files.pairs import PairSet, is_pairs, open_pairs
from pidistill.jobs.pairs import plan_pairs
from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import Grid
from pidistill.models.student import Student
from pidistill.models.student_init import make_student
from pidistill.objectives.base import Objective, Setup, check_contract, find_objective
from pidistill.training.config import DistillConfig
from pidistill.training.recompute import find_recomputable_blocks

OF_TEACHER = "teacher"  # data: drawn by the run itself


def build_objective(config: DistillConfig, teacher: Denoiser, device: str = "cpu",
                    previous: Path | None = None, net: dict[str, Any] | None = None,
                    data: ImageSet | None = None) -> Objective:
    """Build the objective over a new student of the teacher.

    teacher: that the student learns from; in a later stage it may be the student of the one before.
    device: `meta` for a dry run, else `cpu`.
    previous: the folder of the stage before, for `student.init=previous`.
    net: its student's network, if that is of the user's own.
    data: what `open_data` has opened for it, if that was called.

    Raises PidistillError for settings that cannot be had together.
    """
    torch.manual_seed(config.train.seed)  # initial weights, where they are random
    grid = Grid(teacher.grid_times(config.grid.points))
    if grid.points < config.grid.points:
        console.print(f"grid.points={config.grid.points}: {grid.points} different ones among the teacher's noise levels")
    options = dict(config.objective)
    name = options.pop("name")
    data = open_data(config, teacher) if data is None else data
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


def open_data(config: DistillConfig, teacher: Denoiser) -> ImageSet | None:
    """Open the images, or pairs, that an objective needs; None if it needs none.

    Without `data`, pairs are the teacher's own (`PlannedPairs`), which the run draws before it trains; so are images with
    data=teacher.

    config, teacher: of the run. Raises PidistillError for data that do not suit them.
    """
    data, name = config.data, config.objective["name"]
    member = find_objective(name)
    if member.needs == "noise":
        if data is not None:
            raise PidistillError(f"the objective {name} needs no images; leave `data` out")
        return None
    trajectories = member.needs == "trajectories"
    if data == OF_TEACHER or (data is None and member.needs != "images"):
        if trajectories and config.pairs.trajectory is None:
            raise PidistillError(f"the objective {name} needs states between noise and image: pairs.trajectory=4, say")
        return plan_pairs(teacher, config.pairs, config.train.seed)
    if member.needs != "images":
        return check_images(open_pairs_of(str(data), name, trajectories, teacher), str(data), teacher)
    if data is None:
        raise PidistillError(f"the objective {name} needs images: data=..., a folder, a .zip, an .npz or `digits`, or "
                             "`teacher` for the teacher's own samples")
    if teacher.decoder and not is_pairs(data):
        raise PidistillError(f"the objective {name} needs images, and this teacher draws latents: there is no encoder here")
    return check_images(open_images(data), data, teacher)


def open_pairs_of(data: str, name: str, trajectories: bool, teacher: Denoiser) -> PairSet:
    """Open a folder of pairs for an objective.

    trajectories: whether it needs states. Raises PidistillError for other pairs than it can have.
    """
    if not is_pairs(data):
        raise PidistillError(f"the objective {name} needs pairs of noise and the teacher's solution, which data={data} has "
                             "not; `pidistill pairs` draws them, and without `data` the run does")
    pairs = open_pairs(data)
    if trajectories and not pairs.times:
        raise PidistillError(f"the objective {name} needs states between noise and image, and {data} has solutions alone; "
                             "draw pairs with --trajectory")
    if not math.isclose(pairs.t_max, teacher.t_max, rel_tol=1e-6):
        raise PidistillError(f"{data} has noise of T={pairs.t_max:g}, the teacher's is {teacher.t_max:g}")
    if pairs.num_classes != teacher.num_classes:  # images may have fewer
        raise PidistillError(f"{data} has pairs in {pairs.num_classes or 'no'} classes, the teacher has "
                             f"{teacher.num_classes or 'none'}")
    return pairs


def check_images(images: ImageSet, data: str, teacher: Denoiser) -> ImageSet:
    """Refuse images, or pairs, that do not suit the teacher. data: what they are called."""
    if images.shape != teacher.shape:
        raise PidistillError(f"{data} has images of shape {images.shape}, the teacher's are {teacher.shape}")
    if teacher.num_classes and not 0 < images.num_classes <= teacher.num_classes:
        raise PidistillError(f"{data} has {images.num_classes or 'no'} classes, the teacher {teacher.num_classes}")
    return images
