"""A safetensors file's header is read without torch, and compared with the file's size before anything is allocated.

The file is the header's length (8 bytes, little-endian), the header (JSON), and the tensors' bytes without a gap.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.files.reading import open_file, parse_json

HEADER_LIMIT = 10 * 10**6  # bytes
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32,
        "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64}  # of safetensors' types


def read_header(path: Path) -> dict[str, Any]:
    """Read a safetensors file's JSON header, {name: {"dtype", "shape", "data_offsets"}}, which must fit the file exactly.

    Raises PidistillError in one line.
    """
    try:
        with open_file(path) as file:
            length, = struct.unpack("<Q", file.read(8))
            rest = path.stat().st_size - 8
            if length > min(rest, HEADER_LIMIT):
                raise ValueError(f"its header says {length} bytes, of {min(rest, HEADER_LIMIT)} at most")
            header = parse_json(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            shape, offsets = entry["shape"], entry["data_offsets"]
            if not all(type(n) is int and 0 <= n < 2**48 for n in (*shape, *offsets)) or entry["dtype"] not in BITS:
                raise ValueError(f"{name[:60]!r} has an impossible type, shape or place")
            if offsets != [end, end + prod(shape) * BITS[entry["dtype"]] // 8]:
                raise ValueError(f"{name[:60]!r} does not have the bytes of its shape, or they belong to another")
            end = offsets[1]
        if end != rest - length:
            raise ValueError(f"truncated: {rest - length} bytes of {end}")
        return header
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error) as error:
        raise PidistillError(f"cannot read {path}: truncated or not a safetensors file ({error})") from None
