"""Files that others wrote are read with care: regular files alone, of bounded size, and JSON without surprises."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from pidistill.core.errors import PidistillError

JSON_LIMIT = 16 * 10**6  # bytes; Python objects take about twenty times as many
DEPTH = 50  # of lists and mappings in each other


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for any other: a pipe would block, a device never end."""
    if path.exists() and not path.is_file():
        raise OSError("no regular file")
    return path.open("rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file's bytes. Raises PidistillError if they are more than the limit, or cannot be read."""
    try:
        with open_file(path) as file:
            if (size := path.stat().st_size) > limit:
                raise PidistillError(f"cannot read {path}: {size} bytes, more than the {limit} that such a file may have")
            return file.read(limit)
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PidistillError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def parse_json(data: bytes | str) -> Any:
    """Parse strict JSON. Raises ValueError for all else, a key that stands twice, and values too deep in each other."""
    try:
        value = json.loads(data if isinstance(data, str) else data.decode(), object_pairs_hook=_refuse_repeated_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    layer = [value]
    for _ in range(DEPTH):
        layer = [item for outer in layer if isinstance(outer, dict | list)
                 for item in (outer.values() if isinstance(outer, dict) else outer)]
        if not layer:
            return value
    raise ValueError("nested too deeply")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {key[:60]!r} stands twice")
    return mapping


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises PidistillError in one line."""
    try:
        record = parse_json(read_bytes(path, JSON_LIMIT))
    except ValueError as error:
        raise PidistillError(f"cannot read {path}: {error}") from None
    if not isinstance(record, dict):
        raise PidistillError(f"cannot read {path}: expected a JSON object")
    return record
