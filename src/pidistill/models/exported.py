"""A student that was exported, read back as what it is for others: something that draws images from noise.

Nothing of it is executed: a graph is onnxruntime's, and of a folder of diffusers only configurations and weights are read,
whatever code lies in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError, explain, words_of
from pidistill.core.foreign import call_foreign
from pidistill.core.tensors import clip_images, find_device
from pidistill.files.onnx_file import open_session
from pidistill.files.reading import parse_json, read_json, sha256
from pidistill.files.weights import count_allowed_elements, load_weights, read_tensors
from pidistill.models.decoder import Decoder
from pidistill.models.drawing import choose_labels, draw_batches, gather
from pidistill.models.labels import count_labels, parse_null
from pidistill.models.one_step import Affine, OneStep
from pidistill.nets.base import build_net

METADATA = "pidistill_student"  # the key of an ONNX file's metadata that says what it computes
KIND = "one-step student"
STOCK, CUSTOM = "ConsistencyModelPipeline", ["pipeline", "OneStepPipeline"]
WEIGHT_FILE = "diffusion_pytorch_model.safetensors"
MOST_NUMBERS = 2**28  # numbers of an image, at most


class Exported(nn.Module):
    """What was exported draws images of noise, one call of its network each.

    generate: (noise (B, *shape) standard normal, labels (B,) or None) -> images (B, *image_shape).
    network: whose calls are counted, and which says where it is.
    shape, image_shape, num_classes: as of a student.
    source: the file or folder, for messages. digest: tells its weights from others.
    """

    t_max = 1.0  # standard deviation of the noise

    def __init__(self, generate: Callable[[Tensor, Tensor | None], Tensor], network: nn.Module, shape: Sequence[int],
                 image_shape: Sequence[int], num_classes: int, source: str, digest: str | None):
        super().__init__()
        self.generate, self.net, self.source, self.digest = generate, network, source, digest
        self.shape, self.image_shape, self.num_classes = tuple(shape), tuple(image_shape), num_classes

    def forward(self, noise: Tensor, t: float = t_max, labels: Tensor | None = None) -> Tensor:
        return call_foreign(self.generate, self.source, noise, labels)

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], labels: Tensor | Sequence[int] | int | None = None, *, batch_size: int = 250,
               clip: bool = True) -> Tensor:
        """Draw images as `Student.sample` does, (len(seeds), C, H, W) float32, on the CPU, of the same noise and labels."""
        seeds = list(seeds)
        y = choose_labels(labels, self.num_classes, seeds)
        draw = lambda z, y, _: self(z, labels=y).float()
        batches = draw_batches(draw, seeds, y, self.shape, find_device(self), batch_size=batch_size)
        images = gather(batches, len(seeds), self.image_shape)
        return clip_images(images) if clip else images


def names_exported(path: str | Path) -> bool:
    """Whether a path is a file or a folder that `open_exported` reads. A teacher's pipeline is none."""
    path = Path(path)
    index = path / "model_index.json"
    return (path.is_file() and path.suffix == ".onnx") or (path / "student.onnx").is_file() \
        or (index.is_file() and read_json(index).get("_class_name") in (STOCK, CUSTOM))


def open_exported(path: str | Path) -> Exported:
    """Open an exported ONNX file, or the folder of one, or a folder for diffusers. Raises PidistillError in one line."""
    path = Path(path)
    if (path / "student.onnx").is_file():
        path = path / "student.onnx"
    return open_graph(path) if path.is_file() else open_pipeline(path)


# ONNX ---------------------------------------------------------------------------------------------------------------------


class _Session(nn.Module):
    """A session of onnxruntime as a module, so that its calls are counted."""

    def __init__(self, session: Any):
        super().__init__()
        self.session, self.names = session, [node.name for node in session.get_inputs()]

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        values = (np.ascontiguousarray(value.cpu().numpy()) for value in (noise, labels) if value is not None)
        return torch.from_numpy(self.session.run(["image"], dict(zip(self.names, values)))[0])


def run_session(session: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Give what draws with a session of onnxruntime."""
    return _Session(session)


def open_graph(path: Path) -> Exported:
    """Open student.onnx, whose metadata say its shape and classes."""
    session = open_session(path)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise PidistillError(f"{path} is no exported student: its metadata have no {METADATA}; a teacher is named "
                             f"onnx:{path}")
    try:
        record = parse_json(text)
        shape, image_shape, classes = check_record(record["shape"], record["image_shape"], record["classes"])
        inputs = [(node.name, node.type) for node in session.get_inputs()]
        if inputs != [("noise", "tensor(float)"), ("labels", "tensor(int64)")][:2 if classes else 1]:
            raise ValueError(f"its inputs are {inputs}")
        if "image" not in [node.name for node in session.get_outputs()]:
            raise ValueError("it has no output called image")
    except (KeyError, TypeError, ValueError) as error:
        raise PidistillError(explain(f"{path} is no exported student", error)) from None
    network = _Session(session)
    return Exported(network, network, shape, image_shape, classes, str(path), sha256(path))


def check_record(shape: Any, image_shape: Any, classes: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Check shapes and classes that a file states. Raises ValueError."""
    for sides in (shape, image_shape):
        if not (isinstance(sides, list | tuple) and sides and all(type(side) is int and side > 0 for side in sides)
                and math.prod(sides) < MOST_NUMBERS):
            raise ValueError(f"a shape in it is {str(sides)[:80]}")
    if not (type(classes) is int and 0 <= classes <= 10**6):
        raise ValueError(f"its number of classes is {str(classes)[:80]}")
    return tuple(shape), tuple(image_shape), classes


# diffusers ----------------------------------------------------------------------------------------------------------------


def open_pipeline(folder: Path) -> Exported:
    """Open a ConsistencyModelPipeline of a UNet2DModel, or what `pidistill export --format diffusers` wrote otherwise."""
    from pidistill.nets.features.base import fingerprint  # not for those who only ask `names_exported`

    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    try:
        if kind == STOCK:
            step = read_stock(folder)
        elif kind == CUSTOM:
            step = read_custom(folder, index)
        else:
            raise PidistillError(f"{folder} is a {str(kind)[:80]}, and no exported student: a {STOCK} or a {CUSTOM[1]}; "
                                 f"a teacher is named diffusers:{folder}")
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise PidistillError(f"{folder} cannot be read as an exported student: {type(error).__name__}: "
                             f"{words_of(error)}") from None
    return Exported(step, step.net, step.shape, step.image_shape, step.num_classes, str(folder), fingerprint(step.net))


def read_stock(folder: Path) -> OneStep:
    """Read diffusers' own pipeline: x = c_skip(T) z + c_out(T) unet(z/(T^2 + s^2)^1/2, 250 ln T) of z = T n."""
    config, plan = read_json(folder / "unet" / "config.json"), read_json(folder / "scheduler" / "scheduler_config.json")
    T, eps, s = (float(plan[f"sigma_{key}"]) for key in ("max", "min", "data"))
    if not 0 < eps < T < math.inf or not 0 < s < math.inf:
        raise ValueError(f"its scheduler has sigma_min {eps}, sigma_max {T} and sigma_data {s}")
    a = T * s**2 / ((T - eps) ** 2 + s**2)
    affine = Affine(a, s * (T - eps) / math.hypot(T, s), T / math.hypot(T, s), (250 * math.log(T),))
    side = config["sample_size"]
    shape, _, classes = check_record([config["in_channels"], *(side if isinstance(side, list) else [side, side])], [1],
                                     config.get("num_class_embeds") or 0)
    spec = {"name": "diffusers_net", "kind": "UNet2DModel", "config": config}
    net = build_part(spec, shape, classes, folder / "unet", "net.")
    return OneStep(net, affine, shape, classes)


def read_custom(folder: Path, index: dict[str, Any]) -> OneStep:
    """Read a pipeline with code of its own, which is left alone."""
    step, part = index["step"], folder / "unet"
    config, null = read_json(part / "config.json"), parse_null(step["null"])
    shape, _, classes = check_record(step["shape"], [1], step["classes"])
    a, b, c, *clock = (float(value) for value in (step["a"], step["b"], step["c"], *step["clock"]))
    if not (all(map(math.isfinite, (a, b, c, *clock))) and clock and type(step["states"]) is int and step["states"] > 0):
        raise ValueError(f"its step is {str(step)[:80]}")
    labels = count_labels(classes, null)
    if index["unet"][0] == "diffusers":
        spec = {"name": "diffusers_net", "kind": index["unet"][1], "config": config, "unit_range": bool(step["unit_range"])}
        net = build_part(spec, shape, labels, part, "net.")
    else:
        net = build_part({"name": step["net"], **config["options"]}, shape, labels, part, "", "net.")
    decoder = None
    if "vae" in index and index["vae"] != [None, None]:
        decoder = Decoder({"config": read_json(folder / "vae" / "config.json")["config"]})
        load_weights(decoder, read_tensors(folder / "vae" / WEIGHT_FILE), folder / "vae" / WEIGHT_FILE)
    return OneStep(net, Affine(a, b, c, tuple(clock), step["states"]), shape, classes, null, decoder)


def build_part(spec: dict[str, Any], shape: Sequence[int], labels: int, folder: Path, add: str,
               remove: str = "") -> nn.Module:
    """Build a network and load a component's weights, whose names get the prefix `add` and lose `remove`."""
    path = folder / WEIGHT_FILE
    net = build_net(spec, shape, labels, count_allowed_elements(path), folder / "config.json")
    load_weights(net, {add + name.removeprefix(remove): value for name, value in read_tensors(path).items()}, path)
    return net


def make_record(step: OneStep, **more: Any) -> str:
    """Make what an ONNX file's metadata say of a step, as `open_graph` reads it."""
    return json.dumps({"kind": KIND, "shape": step.shape, "image_shape": step.image_shape, "classes": step.num_classes,
                       **more})
