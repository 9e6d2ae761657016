"""What a file or folder of weights says of itself, read without torch and without its weights."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from pidistill.errors import PidistillError

FORMATS = {"pidistill-student": "student: 1 evaluation an image", "pidistill-teacher": "teacher"}


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's JSON header: {name: {"dtype", "shape", "data_offsets"}}."""
    try:
        with path.open("rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            if length > min(path.stat().st_size - 8, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
            if end != path.stat().st_size - 8 - length:
                raise ValueError("truncated")
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
        path = Path(__file__).parent / "assets" / spec.removeprefix("bundled:") / "teacher"
    if path.is_file() and path.suffix == ".safetensors":
        return {"model": spec, "kind": "weights", **describe_weights(path)}
    config_file = path / "config.json"
    if not config_file.is_file():
        return None
    config = read(config_file)
    kind = FORMATS.get(config.get("format", ""))
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
    except (KeyError, TypeError, ValueError) as error:
        raise PidistillError(f"{config_file} is incomplete: {error}") from None
    provenance = path / "provenance.json"
    return facts | ({"provenance": read(provenance)} if provenance.is_file() else {})


def shortened(net: dict[str, Any]) -> dict[str, Any]:
    """A network's description without long lists."""
    return {key: value for key, value in net.items() if len(str(value)) < 200}


def read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PidistillError(f"cannot read {path}: {error}") from None
    if not isinstance(record, dict):
        raise PidistillError(f"cannot read {path}: expected a JSON object")
    return record
