"""What a file or folder of weights says of itself, read without torch and without its weights."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from pidistill.core.errors import PidistillError

FORMATS = {"pidistill-student": "student: 1 evaluation an image", "pidistill-teacher": "teacher"}
JSON_LIMIT, HEADER_LIMIT = 16 * 10**6, 10 * 10**6  # bytes; Python objects take about twenty times as many
DEPTH = 50  # of lists and mappings in each other
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32,
        "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64}  # of safetensors' types


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: Path) -> BinaryIO:
    """A regular file, for reading: a pipe would block, a device never end."""
    if path.exists() and not path.is_file():
        raise OSError("no regular file")
    return path.open("rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file's bytes, if they are no more than the limit."""
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
    """Strict JSON. Raises ValueError for anything else, a key that stands twice, and values too deep in each other."""
    try:
        value = json.loads(data if isinstance(data, str) else data.decode(), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    layer = [value]
    for _ in range(DEPTH):
        layer = [item for outer in layer if isinstance(outer, dict | list)
                 for item in (outer.values() if isinstance(outer, dict) else outer)]
        if not layer:
            return value
    raise ValueError("nested too deeply")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {key[:60]!r} stands twice")
    return mapping


def read_json(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(read_bytes(path, JSON_LIMIT))
    except ValueError as error:
        raise PidistillError(f"cannot read {path}: {error}") from None
    if not isinstance(record, dict):
        raise PidistillError(f"cannot read {path}: expected a JSON object")
    return record


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's JSON header: {name: {"dtype", "shape", "data_offsets"}}, which fits the file's size exactly."""
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


def describe_weights(path: Path) -> dict[str, Any]:
    """Parameters (with buffers, which the file does not tell apart), types and size of a safetensors file."""
    entries = {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
    types = Counter(entry["dtype"] for entry in entries.values())
    return {"parameters": sum(prod(entry["shape"]) for entry in entries.values()),
            "tensors": len(entries), "types": ", ".join(f"{count} {name}" for name, count in types.items()),
            "bytes": path.stat().st_size}


def describe_stored(spec: str) -> dict[str, Any] | None:
    """Facts to print of a student's, teacher's or bundled folder or a safetensors file; None for anything else."""
    path = Path(spec)
    if spec.startswith("bundled:"):
        name = spec.removeprefix("bundled:")
        if not re.fullmatch(r"\w+", name):  # a name, not a path
            return None
        path = Path(__file__).parents[1] / "assets" / name / "teacher"
    if path.is_file() and path.suffix == ".safetensors":
        return {"model": spec, "kind": "weights", **describe_weights(path)}
    config_file = path / "config.json"
    if not config_file.is_file():
        return None
    config = read_json(config_file)
    kind = FORMATS.get(str(config.get("format")))
    if kind is None:
        return None
    try:
        preconditioning = config.get("preconditioning", "edm")
        facts = {
            "model": spec, "kind": kind, "network": shortened(config["net"]),
            "preconditioning": preconditioning if isinstance(preconditioning, str) else preconditioning["name"],
            **describe_weights(path / "model.safetensors"), "shape": "x".join(map(str, config["shape"])),
            "classes": config["num_classes"] or "none (unconditional)",
            "noise range": f"{config['t_min']:g} to {config['t_max']:g}",
            "sigma_data": round(config["sigma_data"], 4), "rho": config["rho"]}
        facts |= {key: config[key] for key in ("guidance", "ema") if key in config}
        if "decoder" in config:
            facts["decoder"] = "AutoencoderKL: the model works on latents"
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PidistillError(f"{config_file} is incomplete: {error}") from None
    provenance = path / "provenance.json"
    return facts | ({"provenance": read_json(provenance)} if provenance.is_file() else {})


def shortened(net: dict[str, Any]) -> dict[str, Any]:
    """A network's description without long lists."""
    return {key: value for key, value in net.items() if len(str(value)) < 200}
