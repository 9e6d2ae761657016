"""The stages of a distillation: runs one after the other, each in a folder of its own in the distillation's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import Denoiser
from pidistill.models.load import read_own_net
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import lend_net
from pidistill.nets.base import is_own
from pidistill.objectives.base import find_objective
from pidistill.training.config import DistillConfig, StudentConfig

PREVIOUS = "previous"  # the student of the stage before, as `teacher` or `student.init`


def list_stages(config: DistillConfig) -> dict[str, DistillConfig]:
    """List the runs that a distillation consists of, by the names of their folders in its own: `1-pid`, `2-...`."""
    stages: list[DistillConfig] = find_objective(config.objective["name"]).stages(config)
    names = [stage.objective["name"].rpartition(":")[2] for stage in stages]
    if stages[0].teacher == PREVIOUS or stages[0].student.init == PREVIOUS:
        raise PidistillError("teacher=previous and student.init=previous are of a later stage; this is the first")
    return {f"{number}-{name}": stage.model_copy(update={"out": str(Path(config.out) / f"{number}-{name}")})
            if len(stages) > 1 else stage for number, (name, stage) in enumerate(zip(names, stages, strict=True), 1)}


def start_anew(stages: dict[str, DistillConfig]) -> dict[str, DistillConfig]:
    """Let stages that start from the one before start as that one does: the network is the same."""
    student, found = StudentConfig(), {}
    for name, stage in stages.items():
        student = student if stage.student.init == "previous" else stage.student
        found[name] = stage.model_copy(update={"student": student})
    return found


def is_stage(folder: Path) -> bool:
    """Tell whether a run is a stage of the one around it."""
    return re.fullmatch(r"[1-9]\d*-\w+", folder.name) is not None and (folder.parent / "config.yaml").exists()


def name_own_net(configs: Iterable[DistillConfig]) -> dict[str, Any] | None:
    """Give the last network of the user's own that these settings name for a student; None if none does."""
    return next((config.student.net for config in reversed([*configs]) if is_own(config.student.net)), None)


def find_own_net(folder: Path, configs: Iterable[DistillConfig], teacher: Denoiser) -> Any:
    """Find the network of a student in a folder, if it is of the user's own: named by the settings, or the teacher's.

    Gives None for a student whose network is one of the package's.
    """
    own = read_own_net(folder)
    return own and (name_own_net(configs) or lend_net(teacher, own))


def load_earlier(folder: Path, stages: dict[str, DistillConfig], teacher: Denoiser) -> dict[str, Student]:
    """Load the students of all stages but the last of a finished distillation, as `student after NAME`.

    folder: of the distillation.
    stages: as `list_stages` gives them.
    teacher: of the distillation, whose network students may have.
    """
    found, configs = {}, [*stages.values()]
    for number, name in enumerate([*stages][:-1], 1):
        net = find_own_net(folder / name / "student", configs[:number], teacher)
        found[f"student after {name}"] = load_student(folder / name, net=net)
    return found
