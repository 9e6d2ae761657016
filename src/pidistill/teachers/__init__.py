"""Teachers, each a function from the rest of a teacher spec KIND:REST to a Denoiser. One file = one kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pidistill.denoiser import FACTS, Denoiser, EDMDenoiser, build_net
from pidistill.errors import PidistillError
from pidistill.files import load_weights, read_json, read_tensors
from pidistill.plugins import build, choices, names


def load_teacher(spec: str, **options: Any) -> Denoiser:
    """The teacher that KIND:REST names (`bundled:digits`, `folder:PATH`, `python:MODULE:FACTORY`, `gaussian:...`).

    A bare path is a teacher's folder. Raises PidistillError, in one line, for anything that cannot be loaded.
    """
    kind, sign, rest = spec.partition(":")
    if kind == "object":  # what `distill` records of a teacher that was handed over in Python
        raise PidistillError(f"the teacher was a Python object ({rest}), which no file describes; name one with --teacher")
    if not sign or kind not in names("teachers"):
        if Path(spec).is_dir():
            kind, rest = "folder", spec
        elif sign:
            raise choices("teacher kind", kind, names("teachers"))
        else:
            raise PidistillError(f"teacher {spec!r} is no folder and no KIND:REST (kinds: {', '.join(names('teachers'))})")
    teacher: Denoiser = build("teachers", kind, rest, **options).eval().requires_grad_(False)
    teacher.spec = spec
    return teacher


def read_teacher(folder: Path) -> Denoiser:
    """A folder that `train-teacher` wrote: config.json and model.safetensors."""
    config = read_json(folder / "config.json")
    try:
        if config["format"] != "pidistill-teacher":
            raise PidistillError(f"{folder} holds a {config['format']}, not a pidistill-teacher")
        facts = {name: config[name] for name in FACTS}
        net = build_net(config["net"], facts["shape"], facts["num_classes"])
        teacher = EDMDenoiser(net, net_spec=config["net"], **facts)
    except (KeyError, TypeError, ValueError) as error:
        raise PidistillError(f"{folder / 'config.json'} is incomplete: {error}") from None
    path = folder / "model.safetensors"
    load_weights(teacher, read_tensors(path), path)
    teacher.source = folder
    return teacher


def teacher_config(teacher: EDMDenoiser) -> dict[str, Any]:
    """What read_teacher needs beside the weights."""
    return {"format": "pidistill-teacher", "preconditioning": "edm", "net": teacher.net_spec, **teacher.facts()}
