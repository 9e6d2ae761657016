"""`folder:PATH` is a teacher that `pidistill train-teacher` wrote, or the run folder around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import Denoiser
from pidistill.models.teachers.base import read_teacher


def folder(rest: str, *, weights: bool = True, net: Any = None) -> Denoiser:
    """Read the teacher in a folder.

    rest: the folder's path, `PATH`; or `PATH,net=python:MODULE:FACTORY`, where the network is the user's own.
    weights: as in `load_teacher`.
    net: the same as in `rest`, or a module or a factory, as `load_student` takes it.
    """
    place, sign, named = rest.rpartition(",net=")
    path, net = (Path(place), named) if sign and not Path(rest).exists() else (Path(rest), net)
    for candidate in (path, path / "teacher"):
        if (candidate / "config.json").exists():
            return read_teacher(candidate, weights=weights, net=net)
    hint = f"; it holds a pipeline of diffusers: diffusers:{path}" if (path / "model_index.json").is_file() else ""
    raise PidistillError(f"{path} holds no teacher: config.json and model.safetensors were expected there{hint}")
