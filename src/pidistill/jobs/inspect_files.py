"""`pidistill inspect` of folders and files of ours: describe them from what they record, without torch and weights."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.files.edm_pickle import describe_pickle
from pidistill.files.folders import ASSETS
from pidistill.files.reading import read_json
from pidistill.files.safetensors_header import read_header

FORMATS = {"pidistill-student": "student: 1 evaluation an image", "pidistill-teacher": "teacher"}


def describe_weights(path: Path) -> dict[str, Any]:
    """Describe a safetensors file: parameters (with buffers, which the file does not tell apart), types and size."""
    entries = {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
    types = Counter(entry["dtype"] for entry in entries.values())
    return {"parameters": sum(prod(entry["shape"]) for entry in entries.values()),
            "tensors": len(entries), "types": ", ".join(f"{count} {name}" for name, count in types.items()),
            "bytes": path.stat().st_size}


def describe_stored(spec: str) -> dict[str, Any] | None:
    """Describe a student's, teacher's or bundled folder, a safetensors file or EDM's pickle; gives facts to print.

    Gives None for anything else. Raises PidistillError for a damaged file.
    """
    pickle = Path(spec.removeprefix("edm:"))
    if pickle.suffix == ".pkl" and pickle.is_file():
        return describe_pickle(pickle)
    path = Path(spec)
    if spec.startswith("bundled:"):
        name = spec.removeprefix("bundled:")
        if not re.fullmatch(r"\w+", name):  # a name, not a path
            return None
        path = ASSETS / name / "teacher"
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
            "model": spec, "kind": kind,
            **({"form": config.get("form", "trajectory")} if config["format"] == "pidistill-student" else {}),
            "network": shorten_net(config["net"]),
            "preconditioning": preconditioning if isinstance(preconditioning, str) else preconditioning["name"],
            **describe_weights(path / "model.safetensors"), "shape": "x".join(map(str, config["shape"])),
            "classes": config["num_classes"] or "none (unconditional)",
            "noise range": f"{config['t_min']:g} to {config['t_max']:g}",
            "sigma_data": round(config["sigma_data"], 4), "rho": config["rho"]}
        facts |= {key.replace("null", "null label"): config[key] for key in ("null", "guidance", "ema") if key in config}
        facts["called"] = "no: this is what its files say"
        if "decoder" in config:
            facts["decoder"] = "AutoencoderKL: the model works on latents"
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PidistillError(f"{config_file} is incomplete: {error}") from None
    provenance = path / "provenance.json"
    return facts | ({"provenance": read_json(provenance)} if provenance.is_file() else {})


def shorten_net(net: dict[str, Any]) -> dict[str, Any]:
    """Shorten a network's description: long lists are left out."""
    return {key: value for key, value in net.items() if len(str(value)) < 200}
