"""`onnx:FILE` is a black box that onnxruntime runs. Only its forward pass is used, so the student has another network.

Numbers go into a graph in the types of its inputs. What those cannot hold is refused, and what they round is said.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pidistill.core.console import console
from pidistill.core.errors import PidistillError, to_line
from pidistill.core.registry import suggest_choices
from pidistill.files.onnx_file import open_session
from pidistill.files.reading import parse_json, sha256
from pidistill.models.denoiser import ELEMENTS, Denoiser
from pidistill.models.grid import RHO, SIGMA_DATA, T_MAX, T_MIN
from pidistill.models.teachers.base import split_path

DEFAULTS = {"t_min": T_MIN, "t_max": T_MAX, "sigma_data": SIGMA_DATA, "rho": RHO, "classes": 0}
DECIMALS: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
TYPES = DECIMALS | {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Signature(NamedTuple):
    """What a graph takes and gives.

    inputs: name and type of x, t and, with classes, labels. output: the name of D.
    shape: (C, H, W) of x. batch: the only batch size that the graph takes; None if it takes any.
    """

    inputs: list[tuple[str, Any]]
    output: str
    shape: tuple[int, ...]
    batch: int | None


class ONNXDenoiser(Denoiser):
    """A graph computes D of x, t and, with classes, labels.

    session: onnxruntime's, of the graph.
    signature: of the graph. classes: 0 for an unconditional graph.
    facts: t_min, t_max, sigma_data and rho of `Denoiser`.
    """

    def __init__(self, session: Any, signature: Signature, classes: int, facts: dict[str, Any]):
        super().__init__(signature.shape, classes, **facts)
        self.session, self.signature = session, signature

    def needs_labels(self) -> bool:
        return True

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.num_classes and labels is None:
            labels = torch.zeros(len(x), dtype=torch.int64)
        inputs, output, _, batch = self.signature
        values = [x, t, labels][:len(inputs)]
        size = batch or len(x)
        pieces = []
        for k in range(0, len(x), size):
            feed = {}
            for (name, dtype), value in zip(inputs, values):
                assert value is not None
                rows = cast_to_input(value[k:k + size].detach().cpu().numpy(), dtype, name)
                # A graph of a fixed batch is fed copies of the last row in the end.
                feed[name] = np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1), "edge")
            D = self.session.run([output], feed)[0]
            expected = (size if batch else len(rows), *self.shape)
            if D.shape != expected or D.dtype.kind != "f":
                raise PidistillError(f"the output {output} of {self.spec} must be {expected} decimal numbers, got {D.dtype} "
                                     f"{D.shape}")
            pieces.append(D[:min(size, len(x) - k)])
        return torch.from_numpy(np.concatenate(pieces)).to(device=x.device, dtype=x.dtype)


def cast_to_input(values: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """Give numbers in the type of the graph's input `name`. Raises PidistillError where that cannot hold their size."""
    if dtype is not np.float16:
        return values.astype(dtype)
    with np.errstate(over="ignore"):
        rows = values.astype(dtype)
    if (lost := np.isinf(rows) & np.isfinite(values)).any():
        raise PidistillError(f"the graph takes {name} as float16, whose largest number is 65504, and it is "
                             f"{values[lost].flat[0]:g}; export the graph in float32")
    return rows


def onnx(rest: str) -> Denoiser:
    """Read a graph of inputs x (B, ...), t (B,) and, for N classes, labels (B,), in this order, that gives D, (B, ...).

    The shape is the graph's. A graph is a program: it opens no file but weights in its own folder, yet may take any memory
    and time that it asks for. Raises PidistillError in one line.

    rest: `FILE.onnx[,t_min=...][,t_max=...][,sigma_data=...][,rho=...][,classes=N][,output=NAME]`. D is the first output, or
        the one that is named. The facts may stand in the file's metadata under `pidistill`, as JSON; those of `rest` win.
    """
    name, pairs = split_path(rest)
    path = Path(os.path.expanduser(name))
    session = open_session(path)
    output = next((pair.removeprefix("output=") for pair in pairs if pair.startswith("output=")), None)
    facts = read_facts(session, [pair for pair in pairs if not pair.startswith("output=")], rest)
    classes = int(facts.pop("classes"))
    signature = read_signature(path, session, classes, output)
    check_numbers(path, signature, facts)
    teacher = ONNXDenoiser(session, signature, classes, facts)
    teacher.origin = {"file": path.name, "sha256": sha256(path), "licence": "as the file's source says", "left_out": []}
    return teacher


def read_signature(path: Path, session: Any, classes: int, output: str | None) -> Signature:
    """Read what a graph takes and gives. Raises PidistillError for what would have to be guessed, or be rounded unseen.

    classes: 0 for an unconditional graph. output: the name of D; None: the first.
    """
    inputs, expected = session.get_inputs(), f"x (B, ...), t (B,){' and labels (B,)' if classes else ''}"
    listing = ", ".join(f"{i.name} {i.type}{i.shape}" for i in inputs)
    hint = "" if classes else "; with labels, say classes=N"
    if len(inputs) != (3 if classes else 2) or len(inputs[0].shape) < 2 or any(len(i.shape) != 1 for i in inputs[1:]):
        raise PidistillError(f"{path}: the graph must take {expected}, it takes {listing}{hint}")
    x, t, *labels = inputs
    if t.type not in DECIMALS and t.type in TYPES:
        raise PidistillError(f"{path}: the graph's second input, {t.name}, is {t.type}, and should be t, a noise level (the "
                             "order is x, t, labels). A step's number cannot stand for t: let the graph take t as a decimal "
                             "number, find the step itself and make D of the network's output; or load the network by "
                             "diffusers: or python:" + hint)
    if x.type not in DECIMALS or t.type not in DECIMALS or any(i.type not in TYPES for i in labels):
        raise PidistillError(f"{path}: the graph must take {expected}, x and t as float, float16 or double and labels as "
                             f"int64 or int32; it takes {listing}")
    if labels and labels[0].type in DECIMALS and classes - 1 > 2 ** (np.finfo(TYPES[labels[0].type]).nmant + 1):
        raise PidistillError(f"{path}: {labels[0].name} is {labels[0].type}, which does not hold the numbers of {classes} "
                             "classes; labels should be int64")
    shape = x.shape[1:]
    if not all(isinstance(n, int) and n > 0 for n in shape) or math.prod(shape) > ELEMENTS:
        raise PidistillError(f"{path}: the shape of {x.name} must be fixed but for the batch, got {x.shape}")
    fixed = {i.shape[0] for i in inputs if isinstance(i.shape[0], int)}
    batch = next(iter(fixed), None)
    if len(fixed) > 1:
        raise PidistillError(f"{path}: the graph's inputs must be of one batch, or of any; it takes {listing}")
    if batch is not None and not 0 < batch * math.prod(shape) <= ELEMENTS:
        raise PidistillError(f"{path}: the shape of {x.name} must be fixed but for the batch, got {x.shape}")
    kinds = [(i.name, TYPES[i.type]) for i in inputs]
    return Signature(kinds, choose_output(path, session.get_outputs(), output), tuple(shape), batch)


def choose_output(path: Path, outputs: Any, name: str | None) -> str:
    """Choose the output that is D, and say which one where there are several. name: as the user has it, or None."""
    names = [o.name for o in outputs]
    if name is not None and name not in names:
        raise suggest_choices(f"output of {path}", name, names)
    chosen = outputs[0 if name is None else names.index(name)]
    if chosen.type not in DECIMALS:
        raise PidistillError(f"{path}: the output {chosen.name}, which should be D, is {chosen.type}; another one is named "
                             f"by output=NAME (outputs: {', '.join(names)})")
    if name is None and len(names) > 1:
        remark(f"{path}: of its outputs {', '.join(names)[:300]} the first is taken as D; output=NAME names another one")
    return chosen.name


def check_numbers(path: Path, signature: Signature, facts: dict[str, float]) -> None:
    """Say that float16 rounds what a graph is given, or that its t may be a step; refuse levels that it does not hold."""
    halves = [name for name, dtype in signature.inputs[:2] if dtype is np.float16]
    if signature.inputs[1][0] in halves:
        with np.errstate(over="ignore"):
            ends = [(facts[key], float(np.float16(facts[key]))) for key in ("t_min", "t_max")]
        if any(abs(rounded - t) > t / 1024 for t, rounded in ends):
            raise PidistillError(f"{path}: the graph takes {signature.inputs[1][0]} as float16, which does not hold t from "
                                 f"{facts['t_min']:g} to {facts['t_max']:g}; export it in float32, or set t_min and t_max")
    if halves:
        remark(f"{path}: the graph takes {' and '.join(halves)} as float16: it sees three digits")
    if re.search("step", signature.inputs[1][0], re.IGNORECASE):
        remark(f"{path}: the graph's second input is called {signature.inputs[1][0][:100]}, and is given the noise level t, "
               "no number of a step. Ask the teacher whether it denoises: pidistill inspect --check")


def remark(text: str) -> None:
    """Print a line, with names out of a file."""
    console.print(to_line(text), soft_wrap=True, markup=False)


def read_facts(session: Any, pairs: list[str], rest: str) -> dict[str, float]:
    """Read the teacher's facts, by the keys of DEFAULTS: the spec's win over the file's metadata, these over DEFAULTS.

    pairs: the spec's `key=number`. rest: the whole spec, for the error.
    """
    usage = f"an onnx teacher is onnx:FILE[,output=NAME][,key=number...] with the keys {', '.join(DEFAULTS)}"
    try:
        metadata = parse_json(session.get_modelmeta().custom_metadata_map.get("pidistill") or "{}")
    except ValueError as error:
        raise PidistillError(f"onnx:{rest}: its metadata `pidistill` is no JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise PidistillError(f"onnx:{rest}: its metadata `pidistill` must be a JSON object, such as {{\"t_max\": 80}}")
    said = {key: value if sign else None for key, sign, value in (pair.partition("=") for pair in pairs)}
    facts: dict[str, float] = dict(DEFAULTS)
    for key, value in [*metadata.items(), *said.items()]:
        place = f"onnx:{rest}" if key in said else f"onnx:{rest}, its metadata `pidistill`"
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, TypeError, OverflowError):
            number = math.nan
        if key not in DEFAULTS or not 0 <= number < 1e9 or (key == "classes" and number % 1):
            raise PidistillError(f"{place}: {key}={str(value)[:40]}; {usage}")
        facts[key] = number
    return facts
