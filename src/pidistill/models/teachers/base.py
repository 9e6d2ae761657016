"""A kind of teacher is a function from the rest of a teacher spec KIND:REST to a Denoiser. One file = one kind."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build, find_member, list_members, suggest_choices
from pidistill.files.folders import split_options
from pidistill.files.reading import read_json
from pidistill.files.weights import ANY, count_allowed_elements, load_weights, read_tensors
from pidistill.models.decoder import read_decoder
from pidistill.models.denoiser import Denoiser, Preconditioned, parse_facts
from pidistill.models.labels import Null, read_labels, split_spec
from pidistill.nets.base import Own, describe_net, rebuild_net, unwrap


def split_path(rest: str) -> tuple[str, list[str]]:
    """Split `PATH,key=value,...` into the path, as the longest one that is there, commas and all, and the pairs.

    Raises PidistillError for a key that stands twice.
    """
    path, pairs = split_options(rest)
    keys = [pair.partition("=")[0] for pair in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise PidistillError(f"{rest}: {twice[0]} stands twice")
    return path, pairs


def load_teacher(spec: str, *, weights: bool = True, null: Null = None, guidance: float | None = None,
                 **options: Any) -> Denoiser:
    """Load the teacher that a spec names, in evaluation mode and without gradients.

    Raises PidistillError, in one line, for anything that cannot be loaded.

    spec: KIND:REST, such as `bundled:digits`, `folder:PATH`, `edm:NAME`, `python:MODULE:FACTORY` or `gaussian:2`; a bare
        path is a teacher's folder, with `PATH,net=python:MODULE:FACTORY` where its network is the user's own. Of any
        kind, `,null=N` (or `null=none`) and `,guidance=W` are null label and guidance, as `Denoiser.set_guidance` has them.
    weights: False builds the network of a kind that reads files from its configuration alone, on the meta device, where
        nothing is computed and no file of weights is needed; other kinds are as ever.
    null, guidance: the same as in the spec, which records them.
    options: of the kind's function.
    """
    bare, chosen = split_spec(spec)
    for key, value in (("null", null), ("guidance", guidance)):
        if value is not None and key in chosen:
            raise PidistillError(f"{spec}: {key} is given twice")
        if value is not None:
            chosen[key], spec = str(value), f"{spec},{key}={value}"
    kind, sign, rest = bare.partition(":")
    if kind == "object":  # what `distill` records of a teacher that was handed over in Python
        raise PidistillError(f"the teacher was a Python object ({rest}), which no file describes; name one with --teacher")
    if not sign or kind not in list_members("teachers"):
        if Path(bare.rpartition(",net=")[0] or bare).is_dir():
            kind, rest = "folder", bare
        elif sign:
            raise suggest_choices("teacher kind", kind, list_members("teachers"))
        else:
            raise PidistillError(f"teacher {spec!r} is no folder and no KIND:REST "
                                 f"(kinds: {', '.join(list_members('teachers'))})")
    if not weights and "weights" in inspect.signature(find_member("teachers", kind)).parameters:
        options["weights"] = False
    teacher: Denoiser = build("teachers", kind, rest, **options).eval().requires_grad_(False)
    teacher.spec = spec
    if chosen:
        teacher.set_guidance(chosen.get("guidance", teacher.guide.guidance), chosen.get("null"))
    return teacher


def find_licence(teacher: Denoiser) -> str:
    """Find what is known of a teacher's licence, in words: that of its file, or of the data that it was trained on."""
    licence = (teacher.origin or {}).get("licence")
    if teacher.source and (teacher.source / "provenance.json").exists():
        licence = read_json(teacher.source / "provenance.json").get("data_licence", licence)
    return str(licence or "unknown")


def build_network_teacher(net: dict[str, Any], shape: Sequence[int], num_classes: int, *, weights: bool = True,
                    file: Path | None = None, own: Own | None = None, **facts: Any) -> Preconditioned:
    """Build a network with random weights, in a preconditioning.

    net: its description, {"name": ..., options}.
    shape: (C, H, W) of the images. num_classes: labels that it knows, 0 for an unconditional network.
    weights: False builds it on the meta device.
    file: of its weights, which bounds its size.
    own: the network, if it is the user's own, as `rebuild_net` takes it.
    facts: options of `Preconditioned`.
    """
    elements = count_allowed_elements(file) if file else ANY
    with nullcontext() if weights else torch.device("meta"):
        network = rebuild_net(net, shape, num_classes, elements, file.parent if file else "the teacher", own,
                              "folder:PATH,net={0}, or in Python load_teacher(..., net={0!r})")
    spec = net if own is None else {**net, **describe_net(own)} if isinstance(own, str | dict) else None
    return Preconditioned(network if weights else network.to("meta"), shape, num_classes, net_spec=spec, **facts)


def read_teacher(folder: Path, *, weights: bool = True, net: Own | None = None) -> Denoiser:
    """Read a folder that `train-teacher` or `convert` wrote: config.json and, with weights, model.safetensors.

    weights: False builds the network on the meta device. Raises PidistillError in one line.
    net: of a teacher whose network is the user's own, as `load_student` takes it.
    """
    config = read_json(folder / "config.json")
    try:
        if config["format"] != "pidistill-teacher":
            raise PidistillError(f"{folder} holds a {config['format']}, not a pidistill-teacher")
        facts, path = parse_facts(config), folder / "model.safetensors"
        extra: dict[str, Any] = {name: config[name] for name in ("preconditioning", "guidance") if name in config}
        facts["num_classes"], extra["null_label"] = read_labels(config)
        teacher = build_network_teacher(config["net"], **facts, **extra, weights=weights, own=net,
                                        file=path if weights else None)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PidistillError(f"{folder / 'config.json'} is incomplete: {error}") from None
    if weights:
        load_weights(teacher, read_tensors(path), path)
        teacher.decoder = read_decoder(config, folder)
    teacher.source = folder
    return teacher


def describe_teacher(teacher: Preconditioned) -> dict[str, Any]:
    """Describe a teacher as its config.json does: all that `read_teacher` needs beside the weights."""
    null, w = teacher.guide
    guidance = {**({} if w == 1 else {"guidance": w}), **({} if null is None else {"null": null})}
    decoder = {"decoder": teacher.decoder.spec} if teacher.decoder else {}
    return {"format": "pidistill-teacher", "preconditioning": teacher.preconditioning.spec,
            "net": describe_net(teacher.net_spec, teacher.model), **guidance, **decoder, **teacher.facts()}


def collect_tensors(teacher: Preconditioned) -> dict[str, dict[str, Tensor]]:
    """Collect a teacher's weights by file name: the network's, and the decoder's beside them."""
    files = {"model": {f"model.{key}": value for key, value in unwrap(teacher.model).state_dict().items()}}
    return files | ({"decoder": teacher.decoder.state_dict()} if teacher.decoder else {})
