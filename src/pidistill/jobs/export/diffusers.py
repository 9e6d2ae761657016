"""A folder for Hugging Face diffusers: a stock pipeline where one can hold the student, or one with its own short code.

A UNet2DModel becomes diffusers' ConsistencyModelPipeline, exactly and without any code. At its first and only step, T, that
pipeline computes

    x = c_skip z + c_out unet(z / (T^2 + s^2)^1/2),   c_skip = s^2/((T - eps)^2 + s^2),  c_out = s (T - eps)/(T^2 + s^2)^1/2

with z of standard deviation T, and s its sigma_data. For a student's a n + b net(c n, clock), z = T n, of
`models/one_step.py`,

    s = (T - eps) (r/(1 - r))^1/2,  r = a/T             makes c_skip T = a,
    conv_in's weight times c (T^2 + s^2)^1/2 / T        makes the network's input c n,
    conv_out's weight and bias times b / c_out          make its output's factor b,

and the embedding of the time is frozen at the clock: linear_2's weight is zero, its bias that embedding. Of the student of
PID a = eps, so that s = (eps (T - eps))^1/2.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import copy_module
from pidistill.files.folders import save_tensors
from pidistill.jobs.export._flatten import flatten_code
from pidistill.jobs.export._source import Source, Written
from pidistill.models.exported import CUSTOM, WEIGHT_FILE
from pidistill.models.labels import count_labels
from pidistill.models.one_step import Affine, find_affine
from pidistill.models.student import Student
from pidistill.nets.base import is_own
from pidistill.nets.diffusers_net import DiffusersNet, import_diffusers

PIPELINE, DECODER = (Path(__file__).with_name(f"_{name}.py") for name in ("one_step_pipeline", "latent_decoder"))
NOTICE = "# Written by pidistill (Apache-2.0).\n"
WRAPPER = '''

class OneStepNetwork(ModelMixin, ConfigMixin):
    """The network above as diffusers loads it, from config.json and diffusion_pytorch_model.safetensors."""

    @register_to_config
    def __init__(self, shape: Sequence[int], num_classes: int = 0, options: dict[str, Any] | None = None):
        super().__init__()
        self.net = NAME(shape, num_classes=num_classes, **(options or {}))

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = False):
        return (self.net(sample, timestep.to(sample.dtype), class_labels),)
'''
EXAMPLE_DIFFUSERS = """import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{place}", trust_remote_code=True)  # its code, if any: pipeline.py
images = pipe(batch_size=16, generator=torch.manual_seed(0)).images    # one network call each
"""
IMPORTS = ("from typing import Any", "from diffusers import ConfigMixin, ModelMixin",
           "from diffusers.configuration_utils import register_to_config")


def diffusers(source: Source, folder: Path) -> Written:
    """Write a folder for `DiffusionPipeline.from_pretrained`, stock where that can be, else with trust_remote_code=True.

    Raises PidistillError without diffusers, and for a network of the user's own, whose code cannot be written.
    """
    library, student = import_diffusers(), source.student
    affine = find_affine(student)
    stock = explain_custom(student, affine) is None
    (write_stock if stock else write_custom)(library, student, affine, folder)
    pipeline = library.DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=not stock)
    pipeline.set_progress_bar_config(disable=True)
    if stock:
        pipeline.check_inputs = lambda *_, **__: None  # it takes noise of three channels alone, though it draws any number

    def run(noise: Tensor, labels: Tensor | None) -> Tensor:
        return 2 * pipeline(len(noise), labels, latents=noise, output_type="pt").images - 1

    return Written(run, "diffusers", EXAMPLE_DIFFUSERS)


def explain_custom(student: Student, affine: Affine) -> str | None:
    """Say why diffusers' own pipeline cannot hold a student; None if it can."""
    net, ratio = student.net, affine.a / student.t_max
    if not isinstance(net, DiffusersNet) or type(net.net).__name__ != "UNet2DModel" or student.decoder:
        return "it is no UNet2DModel"
    config: Any = net.net.config
    plain = (config.time_embedding_type == "positional" and not config.center_input_sample and not net.unit_range
             and not any("Skip" in name for name in (*config.down_block_types, *config.up_block_types))
             and config.class_embed_type is None and config.out_channels == config.in_channels == student.shape[0])
    if not plain or student.shape[1] != student.shape[2]:
        return "its network has what scaling at its ends cannot undo"
    if isinstance(student.null_label, int):
        return "it has a label for no class, which the pipeline would draw"
    if not -1e-12 < ratio < 1 - 1e-6:
        return "its share of the noise is not between 0 and 1"
    return None


def write_stock(library: Any, student: Student, affine: Affine, folder: Path) -> None:
    """Write a ConsistencyModelPipeline that computes a UNet2DModel's single step."""
    net: Any = student.net
    unet: Any = copy_module(net.net)
    unet.register_to_config(sample_size=student.shape[1])
    T, eps = student.t_max, student.t_min
    ratio = max(affine.a / T, 1e-12)  # of a student without a part of the noise, too small to be seen
    s = (T - eps) * math.sqrt(ratio / (1 - ratio))
    c_out = s * (T - eps) / math.hypot(T, s)
    with torch.no_grad():
        embed: Any = unet.time_embedding
        embedding: Any = embed(unet.time_proj(torch.tensor(affine.clock)).to(unet.dtype))[0]
        embed.linear_2.weight.zero_()
        embed.linear_2.bias.copy_(embedding)
        unet.conv_in.weight.mul_(affine.c * math.hypot(T, s) / T)
        unet.conv_out.weight.mul_(affine.b / c_out)
        unet.conv_out.bias.mul_(affine.b / c_out)
    scheduler = library.CMStochasticIterativeScheduler(sigma_min=eps, sigma_max=T, sigma_data=s, clip_denoised=False)
    library.ConsistencyModelPipeline(unet, scheduler).save_pretrained(folder)


def write_custom(library: Any, student: Student, affine: Affine, folder: Path) -> None:
    """Write a pipeline with its own code: pipeline.py, and unet/network.py of a network of this package."""
    net = student.net
    index: dict[str, Any] = {"_class_name": CUSTOM, "_diffusers_version": library.__version__}
    unit_range = whole_steps = False
    if isinstance(net, DiffusersNet):
        inner: Any = net.net
        inner.save_pretrained(folder / "unet")
        index["unet"] = ["diffusers", type(inner).__name__]
        unit_range, whole_steps = net.unit_range, net.whole_steps
    else:
        write_component(library, folder / "unet", "network", "OneStepNetwork", write_network(student, net),
                        {"shape": list(student.shape), "num_classes": count_labels(student.num_classes, student.null_label),
                         "options": {key: value for key, value in student.net_spec.items() if key != "name"}}, net, "net.")
        index["unet"] = ["network", "OneStepNetwork"]
    if student.decoder:
        write_component(library, folder / "vae", "decoder", "LatentDecoder", copy_code(DECODER),
                        {"config": dict(student.decoder.spec["config"])}, student.decoder)
        index["vae"] = ["decoder", "LatentDecoder"]
    index["step"] = {"a": affine.a, "b": affine.b, "c": affine.c, "clock": list(affine.clock), "states": affine.states,
                     "shape": list(student.shape), "classes": student.num_classes, "null": student.null_label,
                     "unit_range": unit_range, "whole_steps": whole_steps, "net": student.net_spec["name"]}
    (folder / "pipeline.py").write_text(copy_code(PIPELINE), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_network(student: Student, net: nn.Module) -> str:
    """Write the code of a network of this package. Raises PidistillError for one of the user's own."""
    if is_own(student.net_spec):
        raise PidistillError(f"the network {student.net_spec['name']} is your own, and its code cannot be written into a "
                             "folder; export it with --format onnx or torch-export")
    name = type(net).__name__
    return NOTICE + flatten_code(type(net).__module__, name, IMPORTS, WRAPPER.replace("NAME", name))


def copy_code(path: Path) -> str:
    """Copy a file of code, with the notice that it is the package's."""
    return NOTICE + path.read_text(encoding="utf-8")


def write_component(library: Any, folder: Path, module: str, name: str, code: str, config: dict[str, Any],
                    network: nn.Module, prefix: str = "") -> None:
    """Write a component of a pipeline that brings its code: MODULE.py with the class `name`, config.json and weights."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    record = {"_class_name": name, "_diffusers_version": library.__version__, **config}
    (folder / "config.json").write_text(json.dumps(record, indent=1) + "\n")
    save_tensors(folder / WEIGHT_FILE, {prefix + key: value for key, value in network.state_dict().items()})
