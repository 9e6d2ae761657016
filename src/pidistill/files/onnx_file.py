"""An ONNX file looked through before onnxruntime, which is native code, opens it: its structure and the files it names.

Protocol buffers are fields, each a number, a wire type and a value; of ONNX's messages only those that can hold others, or
name a file, are entered. Nothing is copied out of the file.

`onnx.load(load_external_data=False)` would read it into objects: 100 MB of empty nodes become 7.4 GB in 56 s there, and are
refused after 5 s here; an honest model of 300 MB takes 0.8 s and 0.6 GB, against milliseconds and nothing.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError, words_of
from pidistill.files.reading import open_file

# Message -> its fields that are messages (onnx.proto3), where weights or graphs may lie.
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"}, "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"}, "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"}, "Tensor": {13: "Entry"}, "Entry": {}}
TRAINING = 20  # field of a Model that inference has no use for
FIELDS, GRAPH_DEPTH = 2_000_000, 30  # in all; of messages in each other
SIZE = 2 * 2**30  # bytes that a protocol buffer can have


class Malformed(Exception):
    """What is wrong with the file, for the one line that the reader raises."""


def check_onnx(path: Path) -> None:
    """Refuse what is no ONNX file, and one whose weights lie outside its folder. Raises PidistillError in one line."""
    try:
        if not path.is_file():
            raise Malformed("no regular file")
        if not 0 < path.stat().st_size < SIZE:
            raise Malformed(f"{path.stat().st_size} bytes, where 1 to {SIZE} can be")
        with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[4:8] == b"ORTM":
                raise Malformed("it is in onnxruntime's own format")
            with memoryview(data) as view:
                scan(view, "Model", path.parent, [FIELDS])
    except (OSError, ValueError) as error:
        raise PidistillError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except Malformed as error:
        raise PidistillError(f"cannot read {path} as an ONNX file: {error}") from None


def scan(data: memoryview, message: str, folder: Path, left: list[int], depth: int = 0) -> None:
    """Look through all fields of a message, and the messages in it.

    data: its bytes. message: its kind, of `MESSAGES`. folder: where files that it names must lie.
    left: how many fields may still come, in a list that all calls share. depth: of this message in others.
    """
    if depth > GRAPH_DEPTH:
        raise Malformed("its graphs lie too deep in each other")
    entry: dict[int, bytes] = {}
    for number, value in fields(data, left):
        if message == "Model" and number == TRAINING:
            if value is not None:
                value.release()  # or the file could not be closed
            raise Malformed("it holds a training graph; export the model for inference")
        kind = MESSAGES[message].get(number)
        if kind and value is None:
            raise Malformed(f"a {message} in it is damaged")
        if kind and value is not None:
            with value:
                scan(value, kind, folder, left, depth + 1)
        elif message == "Entry" and value is not None:
            with value:
                if len(value) > 4096:
                    raise Malformed("a name in it is longer than paths are")
                entry[number] = bytes(value)
        elif value is not None:
            value.release()
    if entry.get(1) == b"location":
        check_place(entry.get(2, b""), folder)


def fields(data: memoryview, left: list[int]) -> Iterator[tuple[int, memoryview | None]]:
    """Yield (number, bytes, or None for a plain number) of each field; left: as in `scan`."""
    at, end = 0, len(data)
    while at < end:
        left[0] -= 1
        if left[0] < 0:
            raise Malformed(f"it has more than {FIELDS:,} fields")
        key, at = varint(data, at)
        wire, number = key & 7, key >> 3
        if not 0 < number < 2**29 or wire not in (0, 1, 2, 5):
            raise Malformed("damaged")
        if wire == 2:
            length, at = varint(data, at)
            if length > end - at:
                raise Malformed("truncated")
            yield number, data[at:at + length]
            at += length
        else:
            at = varint(data, at)[1] if wire == 0 else at + (8 if wire == 1 else 4)
            yield number, None
    if at != end:
        raise Malformed("truncated")


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; gives it and where it ends."""
    value = 0
    for k in range(10):
        if at + k >= len(data):
            raise Malformed("truncated")
        value |= (data[at + k] & 127) << 7 * k
        if data[at + k] < 128:
            return value, at + k + 1
    raise Malformed("damaged")


def check_place(name: bytes, folder: Path) -> None:
    """Refuse a file of weights that is not in the folder: by an absolute path, by one that leads out, or through a link."""
    text = name.decode("utf-8", "replace")
    if not re.fullmatch(r"[\w.-][\w. /-]*", text) or ".." in text.split("/"):
        raise Malformed(f"its weights lie in {text[:100]!r}, not in the folder of the file")
    if not (folder / text).resolve().is_relative_to(folder.resolve()):
        raise Malformed(f"its weights lie in {text[:100]!r}, which links out of the folder")
    if not (folder / text).is_file():
        raise Malformed(f"the file of its weights, {text[:100]!r}, is not in its folder")


def open_session(path: Path) -> Any:
    """Open an ONNX file in onnxruntime, once it has been looked through. Raises PidistillError in one line."""
    try:
        import onnxruntime
    except ImportError:
        raise PidistillError("this needs onnxruntime, which is not installed: pip install 'pidistill[onnx]'") from None
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    check_onnx(path)
    options = onnxruntime.SessionOptions()  # no library of custom operators is ever registered
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4  # its errors come as exceptions
    providers = [p for p in onnxruntime.get_available_providers() if p.startswith(("CUDA", "CPU"))]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        _ = [(node.name, node.type) for node in (*session.get_inputs(), *session.get_outputs())]  # names that are no text
    except Exception as error:  # onnxruntime's own classes, several
        raise PidistillError(f"cannot read {path} as an ONNX file ({words_of(error)})") from None
    return session
