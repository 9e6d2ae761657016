"""`folder:PATH` is a teacher that `pidistill train-teacher` wrote, or the run folder around it."""

from __future__ import annotations

from pathlib import Path

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import Denoiser
from pidistill.models.teachers.base import read_teacher


def folder(rest: str, *, weights: bool = True) -> Denoiser:
    """Read the teacher in a folder. rest: the folder's path. weights: as in `load_teacher`."""
    path = Path(rest)
    for candidate in (path, path / "teacher"):
        if (candidate / "config.json").exists():
            return read_teacher(candidate, weights=weights)
    raise PidistillError(f"{path} holds no teacher: config.json and model.safetensors were expected there")
