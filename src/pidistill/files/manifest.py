"""A folder's manifest lists the size and the SHA-256 of every file, so that a damaged file is noticed before it is used.

The manifest ends with the SHA-256 of its own rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.files.folders import mark_stage
from pidistill.files.reading import open_file, sha256

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1_000_000  # bytes of the manifest itself


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files that are in the folder now."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(serialise_manifest({"files": files}), encoding="utf-8")
    mark_stage("manifest written")


def serialise_manifest(record: dict[str, Any]) -> str:
    """Write a manifest out as JSON that ends with the SHA-256 of the rest, so that the manifest is checked as well."""
    whole = record | {"sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}
    return json.dumps(whole, indent=1) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read what `serialise_manifest` wrote, without its SHA-256, which is compared. Raises PidistillError in one line."""
    try:
        with open_file(path) as file:  # no pipe, which would block
            text = file.read(MANIFEST_LIMIT + 1)
        if len(text) > MANIFEST_LIMIT:
            raise ValueError("too large")
        record = json.loads(text)
        record.pop("sha256")
        if text != serialise_manifest(record).encode():  # byte for byte: a bit that flips anywhere is found
            raise ValueError("its own SHA-256 is another")
        return dict(record)
    except FileNotFoundError:
        raise PidistillError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PidistillError(f"{path} is damaged ({getattr(error, 'strerror', None) or error})") from None


def verify(folder: Path, only: Collection[str] = ()) -> None:
    """Check that every file of a folder, or those named in `only`, is there with its size and its SHA-256.

    Raises PidistillError in one line if one is not.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise PidistillError(f"{path} is missing: the folder is no whole checkpoint")
    record = read_manifest(path)
    try:
        files = dict(record["files"])
        for name in only or files:
            file, entry = folder / name, files[name]
            if Path(name).name != name or not file.is_file():
                raise PidistillError(f"{file} is missing")
            if (size := file.stat().st_size) != entry["bytes"]:
                raise PidistillError(f"{file} has {size} bytes, not the {entry['bytes']} that were written")
            if sha256(file) != entry["sha256"]:
                raise PidistillError(f"{file} is damaged: its SHA-256 is not that of what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PidistillError(f"{path} is damaged ({getattr(error, 'strerror', None) or error})") from None
