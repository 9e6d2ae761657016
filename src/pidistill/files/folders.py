"""Files and folders written whole or not at all, and where those of the package lie."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pidistill.core.errors import CannotWrite, PidistillError

if TYPE_CHECKING:  # torch is imported only where weights are written
    from torch import Tensor

PACKAGE = Path(__file__).parents[1]
ASSETS, PRESETS = PACKAGE / "assets", PACKAGE / "presets"  # files that come with it


def mark_stage(name: str) -> None:
    """Called between any two steps of a write. The tests put something here that kills the process, or fills the disk."""


def write_folder(folder: Path, tensors: dict[str, dict[str, Tensor]], records: dict[str, Any],
                 finish: Callable[[Path], None] = lambda folder: None) -> None:
    """Write NAME.safetensors and NAME.json into a temporary folder, sync it, rename it: there is a whole folder or none.

    finish: called with the temporary folder once all files are in it.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in (os.getpid(), "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        mark_stage("folder made")
        for name, values in tensors.items():
            save_tensors(temporary / f"{name}.safetensors", values)
            mark_stage(f"{name} written")
        for name, record in records.items():
            (temporary / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
            mark_stage(f"{name} written")
        finish(temporary)
        for path in (*temporary.iterdir(), temporary):
            sync(path)  # before the rename: after a power cut the name must not stand for empty files
            mark_stage(f"{path.name} synced")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)  # what a crash may have left
            folder.rename(old)
            mark_stage("old one moved")
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        mark_stage("renamed")
        sync(folder.parent)
        mark_stage("rename synced")
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CannotWrite(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk and not in its cache alone."""
    if os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors of any device as a safetensors file; an error leaves part of it."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(temporary, tensors)
        sync(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CannotWrite(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """A file whole or not at all: the old one stays until the new one is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        mark_stage(f"{path.name} written")
        sync(temporary)
        temporary.replace(path)
        mark_stage(f"{path.name} renamed")
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_free(path: Path, force: bool) -> None:
    """Refuse to overwrite a file or a folder with something in it."""
    if not force and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise PidistillError(f"{path} exists; choose another name with --out, or replace it with --force")


def find_cache_folder() -> Path:
    """Where downloaded and converted weights lie: $PIDISTILL_CACHE, or ~/.cache/pidistill."""
    return Path(os.path.expanduser(os.environ.get("PIDISTILL_CACHE") or "~/.cache/pidistill"))


def write_json(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=1) + "\n")
