"""A run's folder: made once, never overwritten unasked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pidistill.config import RunConfig, dump_yaml, read_yaml
from pidistill.errors import PidistillError


def claim(config: RunConfig, force: bool = False) -> Path:
    """Make the folder `config.out` for a new run and write its config.yaml. `force` replaces an earlier run there."""
    folder = Path(config.out)
    if not is_main_process():  # one process of several makes the folder
        return folder
    try:
        if folder.exists():
            if not folder.is_dir():
                raise PidistillError(f"{folder} is a file; choose another folder with --out")
            if any(folder.iterdir()):
                if not (folder / "config.yaml").exists():
                    raise PidistillError(f"{folder} is not empty and holds no run; choose another folder with --out")
                if not force:
                    raise PidistillError(f"{folder} holds another run; choose another folder with --out, "
                                         f"continue it with `pidistill resume {folder}`, or replace it with --force")
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_yaml(config))
    except OSError as error:
        raise PidistillError(f"cannot write the run's folder {folder}: {error.strerror or error}") from None
    return folder


def is_main_process() -> bool:
    """Whether this is the only process, or the one of several that writes (before and after accelerate is there)."""
    return int(os.environ.get("RANK", 0)) == 0


def is_teachers(folder: Path) -> bool:
    """Whether the run there trains a teacher (and no student)."""
    if not (folder / "config.yaml").exists():
        raise PidistillError(f"{folder} holds no run: config.yaml was expected there")
    return "data" in read_yaml(folder / "config.yaml")


def check_free(path: Path, force: bool) -> None:
    """Refuse to overwrite a file or a folder with something in it."""
    if not force and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise PidistillError(f"{path} exists; choose another name with --out, or replace it with --force")
