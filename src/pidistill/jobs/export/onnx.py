"""ONNX: student.onnx, which onnxruntime runs in any language; noise (and labels) in, images out."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from pidistill.core.errors import PidistillError, explain
from pidistill.jobs.export._program import make_dynamic, replace_branches
from pidistill.jobs.export._source import Source, Written
from pidistill.models.exported import METADATA, make_record, run_session
from pidistill.models.one_step import OneStep

ALL_NUMBERS = 2**40  # numbers of a constant that is computed once: all, so that no weight is reordered in every call
NOTES = ("metadata_props", "doc_string")  # of every node, where in PyTorch's code it comes from: a fifth of a small file

EXAMPLE_RUNTIME = """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("student.onnx")
names = [node.name for node in session.get_inputs()]   # noise and, with classes, labels
noise = np.random.randn(*{noise_shape}).astype(np.float32)
feed = dict(zip(names, (noise, np.arange(16) % {classes})))
images = session.run(["image"], feed)[0]               # {shape} in [-1, 1]
"""


def onnx(source: Source, folder: Path, *, precision: Literal["fp32", "fp16", "int8"] = "fp32",
         pixels: bool = False) -> Written:
    """Write student.onnx: noise (B, C, H, W) and, with classes, labels (B,) int64 -> image, float32 in [-1, 1]; any B.

    precision: of weights and products; fp16 keeps inputs and outputs in float32, int8 is onnxruntime's dynamic quantisation.
    pixels: a second output, `pixels`, (B, C, H, W) uint8.

    Raises PidistillError without onnx, onnxscript and onnxruntime, and for a network that cannot be traced.
    """
    library, onnxruntime = import_onnx()
    path = folder / "student.onnx"
    step = source.make_step(pixels)
    model = make_graph(step)
    with quiet():
        if precision == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = convert_float_to_float16(model, keep_io_types=True)
        elif precision == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(model, path, weight_type=QuantType.QUInt8)  # signed weights ran at half the speed
            model = library.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, make_record(step, precision=precision)
    library.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return Written(run_session(session), "onnx", EXAMPLE_RUNTIME)


def import_onnx() -> tuple[Any, Any]:
    """Import onnx and onnxruntime, and see that onnxscript is there. Raises PidistillError with what to install."""
    try:
        import onnx as library
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PidistillError(f"this needs {error.name}, which is not installed: pip install 'pidistill[onnx]'") from None
    return library, onnxruntime


def make_graph(step: OneStep) -> Any:
    """Make a step's graph, an onnx.ModelProto, traced with an example of two images.

    Raises PidistillError for what cannot be traced.
    """
    replace_branches(step)
    names = ["noise", "labels"][:2 if step.num_classes else 1]
    try:
        with quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                step, step.make_inputs(2), dynamo=True, optimize=False, input_names=names,
                output_names=["image", "pixels"][:2 if step.pixels else 1], dynamic_shapes=make_dynamic(step), verbose=False)
            from onnxscript import ir, optimizer

            # Not the optimizer's rewriting: it takes as long as the tracing, and onnxruntime fuses operators itself.
            optimizer.fold_constants(program.model, input_size_limit=ALL_NUMBERS, output_size_limit=ALL_NUMBERS)
            optimizer.remove_unused_nodes(program.model)
            model = ir.serde.serialize_model(program.model)
    except Exception as error:  # of the tracer, and of the network
        raise PidistillError(explain("the network cannot be written as ONNX", error)) from error
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        for field in NOTES:
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporters print and log to themselves meanwhile; what they raise comes through."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
