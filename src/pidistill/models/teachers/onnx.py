"""`onnx:FILE` is a black box that onnxruntime runs. Only its forward pass is used, so the student has another network."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError, first_line
from pidistill.files.onnx_file import check_onnx
from pidistill.files.reading import parse_json, sha256
from pidistill.models.denoiser import ELEMENTS, Denoiser
from pidistill.models.grid import RHO, SIGMA_DATA, T_MAX, T_MIN

DEFAULTS = {"t_min": T_MIN, "t_max": T_MAX, "sigma_data": SIGMA_DATA, "rho": RHO, "classes": 0}
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int64)": np.int64,
         "tensor(int32)": np.int32}


class ONNXDenoiser(Denoiser):
    """A graph computes D: its inputs are x, t and, with classes, labels, in this order, and its first output is D.

    session: onnxruntime's, of the graph.
    shape: (C, H, W) of x. classes: 0 for an unconditional graph.
    facts: t_min, t_max, sigma_data and rho of `Denoiser`.
    batch: the only batch size that the graph takes; None if it takes any.
    """

    def __init__(self, session: Any, shape: tuple[int, ...], classes: int, facts: dict[str, float], batch: int | None):
        super().__init__(shape, classes, **facts)
        self.session, self.batch = session, batch
        self.outputs = [session.get_outputs()[0].name]
        self.inputs = [(i.name, TYPES[i.type]) for i in session.get_inputs()]

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.num_classes and labels is None:
            labels = torch.zeros(len(x), dtype=torch.int64)
        values = [x, t, labels][:len(self.inputs)]
        size = self.batch or len(x)
        pieces = []
        for k in range(0, len(x), size):
            feed = {}
            for (name, dtype), value in zip(self.inputs, values):
                assert value is not None
                rows = value[k:k + size].detach().cpu().numpy().astype(dtype)
                # A graph of a fixed batch is fed copies of the last row in the end.
                feed[name] = np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1), "edge")
            try:
                D = self.session.run(self.outputs, feed)[0]
            except Exception as error:  # onnxruntime's own classes, several
                raise PidistillError(f"onnxruntime cannot run the graph: {first_line(error)}") from None
            if D.shape != (size if self.batch else len(rows), *self.shape) or D.dtype.kind != "f":
                raise PidistillError(f"the graph's first output must be {(len(rows), *self.shape)} numbers, got {D.dtype} "
                                     f"{D.shape}")
            pieces.append(D[:min(size, len(x) - k)])
        return torch.from_numpy(np.concatenate(pieces)).to(device=x.device, dtype=x.dtype)


def onnx(rest: str) -> Denoiser:
    """Read a graph of inputs x (B, ...), t (B,) and, for N classes, labels (B,), whose first output is D, (B, ...).

    The shape is the graph's. A graph is a program: it opens no file but weights in its own folder, yet may take any memory
    and time that it asks for. Raises PidistillError in one line.

    rest: `FILE.onnx[,t_min=...][,t_max=...][,sigma_data=...][,rho=...][,classes=N]`. The same facts may stand in the file's
        metadata under `pidistill`, as JSON; those of `rest` win.
    """
    try:
        import onnxruntime
    except ImportError:
        raise PidistillError("this needs onnxruntime, which is not installed: pip install 'pidistill[onnx]'") from None
    name, *pairs = rest.split(",")
    path = Path(os.path.expanduser(name))
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    check_onnx(path)
    options = onnxruntime.SessionOptions()  # no library of custom operators is ever registered
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4  # its errors come as exceptions
    providers = [p for p in onnxruntime.get_available_providers() if p.startswith(("CUDA", "CPU"))]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        _ = [(node.name, node.type) for node in (*session.get_inputs(), session.get_outputs()[0])]  # names that are no text
    except Exception as error:  # onnxruntime's own classes, several
        raise PidistillError(f"cannot read {path} as an ONNX file ({first_line(error)})") from None
    facts = read_facts(session, pairs, rest)
    classes = int(facts.pop("classes"))
    inputs = session.get_inputs()
    if len(inputs) != (3 if classes else 2) or any(i.type not in TYPES for i in inputs) or len(inputs[1].shape) != 1:
        signature = ", ".join(f"{i.name} {i.type}{i.shape}" for i in inputs)
        raise PidistillError(f"{path}: the graph must take x (B, ...), t (B,){' and labels (B,)' if classes else ''}, it "
                             f"takes {signature}" + ("" if classes else "; with labels, say classes=N"))
    batch, *shape = inputs[0].shape
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape) or math.prod(shape) > ELEMENTS \
            or (isinstance(batch, int) and not 0 < batch * math.prod(shape) <= ELEMENTS):
        raise PidistillError(f"{path}: the shape of {inputs[0].name} must be fixed but for the batch, got {inputs[0].shape}")
    teacher = ONNXDenoiser(session, tuple(shape), classes, facts, batch if isinstance(batch, int) else None)
    teacher.origin = {"file": path.name, "sha256": sha256(path), "licence": "as the file's source says", "left_out": []}
    return teacher


def read_facts(session: Any, pairs: list[str], rest: str) -> dict[str, float]:
    """Read the teacher's facts, by the keys of DEFAULTS: the spec's win over the file's metadata, these over DEFAULTS.

    pairs: the spec's `key=number`. rest: the whole spec, for the error.
    """
    facts: dict[str, float] = dict(DEFAULTS)
    try:
        metadata = parse_json(session.get_modelmeta().custom_metadata_map.get("pidistill", "{}"))
        metadata |= {key: float(value) for key, sign, value in (pair.partition("=") for pair in pairs)}
        facts |= {key: float(value) for key, value in metadata.items()}
    except (ValueError, TypeError, AttributeError, OverflowError):
        facts["?"] = 0
    if facts.keys() != DEFAULTS.keys() or not all(0 <= value < 1e9 for value in facts.values()) or facts["classes"] % 1:
        raise PidistillError(f"an onnx teacher is onnx:FILE[,key=number...] with the keys {', '.join(DEFAULTS)}, "
                             f"got {rest!r}")
    return facts
