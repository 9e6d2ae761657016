"""What belongs to a folder: the size and the SHA-256 of every file. A damaged file is found before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.files.folders import mark_stage
from pidistill.files.reading import sha256

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1_000_000  # bytes of the manifest itself


def write_manifest(folder: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(serialise_manifest({"files": files}), encoding="utf-8")
    mark_stage("manifest written")


def serialise_manifest(record: dict[str, Any]) -> str:
    """JSON that ends with the SHA-256 of the rest, so that the manifest is checked as well."""
    whole = record | {"sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}
    return json.dumps(whole, indent=1) + "\n"


def verify(folder: Path, only: Collection[str] = ()) -> None:
    """Raises PidistillError, in one line, unless every file (or those named) is there, of its size and its SHA-256."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            raise ValueError("too large")
        text = path.read_bytes()
        record = json.loads(text)
        record.pop("sha256")
        if text != serialise_manifest(record).encode():  # byte for byte: a bit that flips anywhere is found
            raise ValueError("its own SHA-256 is another")
        files = dict(record["files"])
        for name in only or files:
            here, said = folder / name, files[name]
            if Path(name).name != name or not here.is_file():
                raise PidistillError(f"{here} is missing")
            if (size := here.stat().st_size) != said["bytes"]:
                raise PidistillError(f"{here} has {size} bytes, not the {said['bytes']} that were written")
            if sha256(here) != said["sha256"]:
                raise PidistillError(f"{here} is damaged: its SHA-256 is not that of what was written")
    except FileNotFoundError:
        raise PidistillError(f"{path} is missing: the folder is no whole checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PidistillError(f"{path} is damaged ({getattr(error, 'strerror', None) or error})") from None
