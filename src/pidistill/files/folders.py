"""Files and folders are written whole or not at all; and where the package's own files and its cache lie."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pidistill.core.errors import CannotWrite, PidistillError, words_of

if TYPE_CHECKING:  # torch is imported only where weights are written
    from torch import Tensor

PACKAGE = Path(__file__).parents[1]
ASSETS, PRESETS = PACKAGE / "assets", PACKAGE / "presets"  # files that come with it


def quote_path(path: str | Path) -> str:
    """Write a path as a shell and this program's command line read it: quoted, and no option where it begins with -."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def mark_stage(name: str) -> None:
    """Mark a stage of a write, by doing nothing. Tests put a function here that kills the process, or fills the disk."""


def write_folder(folder: Path, tensors: dict[str, dict[str, Tensor]], records: dict[str, Any],
                 finish: Callable[[Path], None] = lambda folder: None) -> None:
    """Write a folder whole or not at all: as a temporary folder, which is synced and then renamed.

    Raises CannotWrite if the disk refuses, and PidistillError for tensors that no file can hold; the old folder is still
    there then.

    folder: the folder to write, or to replace.
    tensors: the tensors of every file NAME.safetensors, by NAME.
    records: the content of every file NAME.json, by NAME.
    finish: a function that is called with the temporary folder once all files are in it.
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
    except OSError as error:
        raise CannotWrite(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's names, onto the disk, so that they are not in its cache alone."""
    if os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors of any device as a safetensors file; an error leaves part of it.

    A tensor that has several names (tied weights) is written once, under the first; the file's metadata say which that is
    for each other name, as `safetensors.torch.save_model` writes them. Of views, each is written with its own elements.
    Raises OSError if the disk refuses, and PidistillError for tensors that no file can hold.
    """
    from safetensors.torch import save_file

    from pidistill.core.tensors import locate

    written: dict[str, Tensor] = {}
    names: dict[object, str] = {}  # by a tensor's place in memory
    other_names: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        place = locate(tensor)
        first = names.setdefault(place, name) if place else name
        if first != name:
            other_names[name] = first
            continue
        if str(tensor.layout) != "torch.strided":
            raise PidistillError(f"{path.name} cannot hold these tensors: {name} is of the layout {tensor.layout}")
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        written[name] = whole.clone() if storage.data_ptr() in storages or storage.nbytes() > whole.nbytes else whole
        storages.add(storage.data_ptr())
    try:
        save_file(written, path, metadata=other_names or None)
    except SafetensorError as error:
        if "I/O error" in str(error) or "IoError" in str(error):
            raise OSError(str(error)) from None
        raise PidistillError(f"{path.name} cannot hold these tensors: {error}") from None
    except (ValueError, TypeError, LookupError, RuntimeError) as error:  # a sparse tensor, an unknown type
        what = f"{type(error).__name__}: {words_of(error)}"
        raise PidistillError(f"{path.name} cannot hold these tensors ({what})") from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file, whole or not at all.

    Raises CannotWrite if the disk refuses, and PidistillError for tensors that no file can hold.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(temporary, tensors)
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text as a file in UTF-8, whole or not at all. Raises CannotWrite.

    What is no text, such as the bytes of a file's name that is not UTF-8, is escaped.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes as a file, whole or not at all: the old one stays until the new one is on the disk. Raises CannotWrite."""
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
    """Find the folder of downloaded and converted weights: $PIDISTILL_CACHE, or ~/.cache/pidistill."""
    return Path(os.path.expanduser(os.environ.get("PIDISTILL_CACHE") or "~/.cache/pidistill"))


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as a JSON file, whole or not at all. Raises CannotWrite."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def split_options(spec: str) -> tuple[str, list[str]]:
    """Split `PATH,key=value,...` into the path and the rest, at commas; KIND: may stand before the path.

    The path is the longest one that is there, commas and all, or else what stands before the first comma.
    """
    parts = spec.split(",")
    end = next((k for k in range(len(parts), 1, -1) if names_path(",".join(parts[:k]))), 1)
    return ",".join(parts[:end]), parts[end:]


def names_path(spec: str) -> bool:
    """Tell whether a spec is a file or a folder, or KIND: and one; a null byte or too long a name is none."""
    try:
        return any(os.path.exists(os.path.expanduser(path)) for path in (spec, spec.partition(":")[2]))
    except (OSError, ValueError):
        return False
