"""A student begins as its teacher, theta = phi (Algorithm 1, line 1), at random, or as what an earlier run left."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.registry import find_member
from pidistill.files.reading import read_json
from pidistill.files.weights import count_allowed_elements, load_weights, read_tensors
from pidistill.models.denoiser import Denoiser, Preconditioned
from pidistill.models.student import Student
from pidistill.nets.base import build_net


def make_student(teacher: Denoiser, init: str = "teacher", net: dict[str, Any] | None = None, width: float = 1.0,
                 form: str = "trajectory") -> Student:
    """Make a student for the teacher: of its network and weights (Algorithm 1, line 1), or with random weights.

    init: `teacher`, `random`, or the folder of a student or a teacher, whose network and weights are taken.
    net: another network, {"name": ..., options}, which starts at random.
    width: channels as a multiple of the teacher's, such as 0.5 for the small student of Appendix A.3, also at random.
    form: of the student, as `Student` takes it.

    Dropout is off (Table 6). A teacher that has no network (a black box) needs init="random" and `net`, or a folder.
    At random, a network of the teacher's form that predicts noise is taken to predict v: noise is amplified up to T times in
    F (`Preconditioning.for_student`), which only a network that knows its noise can afford.
    """
    teacher_net = teacher.net_spec if isinstance(teacher, Preconditioned) else None
    if init not in ("teacher", "random"):
        return start_from(Path(init), teacher, net is not None or width != 1, form)
    if init == "teacher" and width != 1:
        raise PidistillError(f"student.width={width} gives a new network, which cannot start from the teacher; "
                             "set student.init=random")
    if init == "teacher" and net is not None:
        raise PidistillError("student.net gives a new network, which cannot start from the teacher; set student.init=random")
    if init == "teacher" and teacher_net is None:
        raise PidistillError("the teacher has no network to start the student from; "
                             "set student.init=random and student.net, such as student.net=mlp")
    if net is None and teacher_net is None:
        raise PidistillError("student.net must name a network, such as mlp: the teacher has none to take its shape from")
    spec: dict[str, Any] = scale_width(dict(net or teacher_net or {}), width)
    if init == "teacher":
        assert isinstance(teacher, Preconditioned)
        network = copy.deepcopy(teacher.model)
    else:
        network = build_net(spec, teacher.shape, teacher.num_classes)
    preconditioning = teacher.preconditioning.spec if isinstance(teacher, Preconditioned) and net is None else "edm"
    if init == "random" and isinstance(preconditioning, dict) and preconditioning["name"] == "epsilon":
        preconditioning = preconditioning | {"name": "v_prediction"}
    return prepare_student(network, spec, teacher, preconditioning, form)


def prepare_student(network: nn.Module, spec: dict[str, Any], teacher: Denoiser,
                    preconditioning: str | dict[str, Any], form: str = "trajectory") -> Student:
    """Make a student of a network, trainable and without dropout; the parameters named in its `frozen`, if any, stay.

    network: as it begins. spec: how to build it again, {"name": ..., options}.
    teacher: gives the facts and the decoder.
    preconditioning: what the network predicts, as `Preconditioning` takes it.
    form: of the student, as `Student` takes it.
    """
    if isinstance(preconditioning, dict):  # trajectories are smooth in t, and so is the student's clock
        preconditioning = {key: value for key, value in preconditioning.items() if key != "whole"}
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "dropout_prob"):  # the latter: of labels, by diffusers' DiT
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    frozen = getattr(network, "frozen", ())
    for name, parameter in network.train().named_parameters():
        parameter.requires_grad_(name not in frozen)
    return Student(network, {**spec, **({"dropout": 0.0} if "dropout" in spec else {})},
                   teacher.facts(), preconditioning, teacher.decoder, form)


def start_from(path: Path, teacher: Denoiser, other: bool = False, form: str = "trajectory") -> Student:
    """Make a student of the teacher that begins as the student or the teacher in a folder, or in the run around it.

    other: whether another network was named too, which is refused.
    form: of the student; one in the folder must be of this form, as its network means nothing in another.

    Raises PidistillError in one line.
    """
    places = (path, path / "student", path / "teacher")
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise PidistillError(f"student.init must be teacher, random or a folder with a student or a teacher, got {path}")
    if other:
        raise PidistillError("student.init names a folder with a network; leave student.net and student.width out")
    config = read_json(folder / "config.json")
    if config.get("format") not in ("pidistill-student", "pidistill-teacher"):
        raise PidistillError(f"student.init: {folder} holds no student and no teacher")
    try:
        shape, classes, spec = tuple(config["shape"]), config["num_classes"], dict(config["net"])
    except (KeyError, TypeError, ValueError) as error:
        raise PidistillError(f"{folder / 'config.json'} is incomplete: {error}") from None
    if (shape, classes) != (teacher.shape, teacher.num_classes):
        raise PidistillError(f"student.init: the network in {folder} is for {shape} in {classes} classes, the teacher's are "
                             f"{teacher.shape} in {teacher.num_classes}")
    stored = config.get("form", "trajectory") if config["format"] == "pidistill-student" else form
    if stored != form:
        raise PidistillError(f"student.init: the student in {folder} is of the form {stored}, this one is to be of the form "
                             f"{form}; start from a teacher or a student of that form")
    weights = folder / "model.safetensors"
    network = build_net(spec, shape, classes, count_allowed_elements(weights), weights)
    state = read_tensors(weights)
    if config["format"] == "pidistill-teacher":
        state = {key.removeprefix("model."): value for key, value in state.items()}
    load_weights(network, state, folder)
    return prepare_student(network, spec, teacher, config.get("preconditioning", "edm"), form)


def scale_width(spec: dict[str, Any], width: float) -> dict[str, Any]:
    """Give the description of a network, {"name": ..., options}, with `width` times its channels."""
    if width == 1:
        return spec
    accepted = inspect.signature(find_member("nets", spec["name"])).parameters
    key = next((key for key in ("model_channels", "width") if key in accepted), None)
    if key is None:
        raise PidistillError(f"student.width: the network {spec['name']} has no channels to multiply; set student.net")
    channels = spec.get(key, accepted[key].default) * width
    if channels < 1 or channels != int(channels):
        raise PidistillError(f"student.width={width} gives {channels} {key}; choose one that gives a whole number")
    return spec | {key: int(channels)}
