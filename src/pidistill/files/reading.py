"""Files that others wrote are read with care: regular files alone, of bounded size, and JSON without surprises."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

from pidistill.core.errors import PidistillError

JSON_LIMIT = 16 * 10**6  # bytes; Python objects take about twenty times as many
DEPTH = 50  # of lists and mappings in each other
NUMBER_LIMIT = 4300  # digits, which Python's int() has


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for any other: a pipe would block, a device never end.

    Raises PidistillError for what git leaves in the place of a file that it has not fetched.
    """
    if path.exists() and not path.is_file():
        raise OSError("no regular file")
    file = path.open("rb")
    refuse_pointer(file.read(len(POINTER)), path)
    file.seek(0)
    return file


POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(head: bytes, where: Any) -> None:
    """Refuse the pointer that stands in a file's place where a repository was cloned without Git LFS. Raises PidistillError.

    head: the file's first bytes. where: its name.
    """
    if head.startswith(POINTER):
        raise PidistillError(f"{where} is a Git LFS pointer, in the place of the file itself; fetch that with `git lfs "
                             "pull` in its repository, or download it")


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
    """Parse strict JSON, in UTF-8 with or without a byte order mark.

    Raises ValueError, which names line and column, for all else, a key that stands twice, and values too deep in each other.
    """
    text = (data if isinstance(data, str) else _decode(data)).removeprefix("\ufeff")
    try:
        value = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as error:
        comma = re.search(r",\s*$", text[:error.pos]) if text[error.pos:error.pos + 1] in ("}", "]") else \
            re.compile(r",(?=\s*[}\]])").match(text, error.pos)  # Python 3.13 points at the comma itself
        words = "Expecting a value or a key after this comma (a trailing comma)" if comma else error.msg.removesuffix(" at")
        raise ValueError(_place(text, comma.start() if comma else error.pos, words)) from None
    except (RecursionError, ValueError) as error:  # ValueError: a key twice, or a number of more digits than Python reads
        raise ValueError(_find_offence(text) or f"cannot be parsed ({error})") from None
    layer = [value]
    for _ in range(DEPTH):
        layer = [item for outer in layer if isinstance(outer, dict | list)
                 for item in (outer.values() if isinstance(outer, dict) else outer)]
        if not layer:
            return value
    raise ValueError(_find_offence(text) or "nested too deeply")


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        hint = "; it looks like UTF-16: save it as UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(f"line {line}, column {column}: {error}{hint}") from None


def _place(text: str, position: int, words: str) -> str:
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return f"line {line}, column {column}: {words}"


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key stands twice")  # `_find_offence` says which, and where
    return mapping


TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]|[^\s{}\[\]:,"]+', re.DOTALL)


def _find_offence(text: str) -> str | None:
    """Find where the first key stands that is there twice, the first value too deep in others, or too long a number."""
    outer: list[set[str]] = []  # the keys of every list (none) and mapping around a token
    last = None
    for token in TOKEN.finditer(text):
        word = token.group()
        if word in "}]":
            del outer[-1:]
        elif word == ":":
            if last and last.group().startswith('"') and outer:
                key = json.loads(last.group(), strict=False)
                if key in outer[-1]:
                    return _place(text, last.start(), f"the key {key[:60]!r} stands twice")
                outer[-1].add(key)
        elif len(outer) >= DEPTH:
            return _place(text, token.start(), "nested too deeply")
        elif word in "{[":
            outer.append(set())
        elif word.lstrip("-").isdecimal() and len(word) > NUMBER_LIMIT:
            return _place(text, token.start(), f"a number of {len(word)} digits")
        last = token
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises PidistillError in one line."""
    try:
        record = parse_json(read_bytes(path, JSON_LIMIT))
    except ValueError as error:
        raise PidistillError(f"cannot read {path}: {error}") from None
    if not isinstance(record, dict):
        raise PidistillError(f"cannot read {path}: expected a JSON object")
    return record
