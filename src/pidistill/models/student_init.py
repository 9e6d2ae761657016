"""A student begins as its teacher, theta = phi (Algorithm 1, line 1), at random, or as what an earlier run left."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.registry import find_member
from pidistill.files.reading import read_json
from pidistill.files.weights import count_allowed_elements, load_weights, read_tensors
from pidistill.models.denoiser import Denoiser, Preconditioned, name_teacher
from pidistill.models.labels import Null, count_classes, count_labels, read_labels
from pidistill.models.student import Student
from pidistill.nets.base import build_net, copy_own, describe_net, extend_net, is_own, rebuild_net

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def make_student(teacher: Denoiser, init: str = "teacher", net: dict[str, Any] | None = None, width: float = 1.0,
                 form: str = "trajectory", **plan: Any) -> Student:
    """Make a student for the teacher: of its network and weights (Algorithm 1, line 1), or with random weights.

    init: `teacher`, `random`, or the folder of a student or a teacher, whose network and weights are taken.
    net: another network, {"name": ..., options}, which starts at random.
    width: channels as a multiple of the teacher's, such as 0.5 for the small student of Appendix A.3, also at random.
    form: of the student, as `Student` takes it.
    plan: more that an objective says of it: drawing_time and times, as `Student` takes them, and `extension`, as
        `prepare_student` does.

    Dropout is off (Table 6). A teacher that has no network (a black box) needs init="random" and `net`, or a folder.
    At random, a network of the teacher's form that predicts noise is taken to predict v: noise is amplified up to T times in
    F (`Preconditioning.for_student`), which only a network that knows its noise can afford.
    """
    own = teacher if isinstance(teacher, Preconditioned) else None
    if init not in ("teacher", "random"):
        return start_from(Path(init), teacher, net, width, form, **plan)
    if init == "teacher" and width != 1:
        raise PidistillError(f"student.width={width} gives a new network, which cannot start from the teacher; "
                             "set student.init=random")
    if init == "teacher" and net is not None:
        raise PidistillError("student.net gives a new network, which cannot start from the teacher; set student.init=random")
    if init == "teacher" and own is None:
        raise PidistillError("the teacher has no network to start the student from; "
                             "set student.init=random and student.net, such as student.net=mlp")
    if net is None and (own is None or (own.net_spec is None and init == "random")):
        raise PidistillError("student.net must name a network, such as mlp: the teacher has none that can be built anew "
                             "(net_spec of Preconditioned would name it)")
    spec = net or describe_net(own.net_spec, own.model) if own else net or {}
    null = own.null_label if own and net is None and isinstance(own.null_label, int) else None
    if own and init == "teacher":
        network = copy_own(own.model, "student.init=teacher")
        if not any(p.is_floating_point() for p in network.parameters()):
            raise PidistillError(f"the teacher's network, {type(network).__name__}, has no parameters to train; set "
                                 "student.init=random and student.net, such as student.net=mlp")
    else:
        spec = scale_width(dict(spec), width)
        labels = count_labels(teacher.num_classes, null)
        network = build_net(spec, teacher.shape, labels, own=True)  # named by the user's settings or own code
    preconditioning = own.preconditioning.spec if own and net is None else "edm"
    if init == "random" and isinstance(preconditioning, dict) and preconditioning["name"] == "epsilon":
        preconditioning = preconditioning | {"name": "v_prediction"}
    return prepare_student(network, spec, teacher, preconditioning, form, own.fixed if own and init == "teacher" else (),
                           null, **plan)


def prepare_student(network: nn.Module, spec: dict[str, Any], teacher: Denoiser,
                    preconditioning: str | dict[str, Any], form: str = "trajectory",
                    fixed: Collection[str] = (), null: Null = None, extension: dict[str, Any] | None = None,
                    **plan: Any) -> Student:
    """Make a student of a network, trainable and without dropout.

    Parameters stay that are named in its `frozen`, if it has one, or that its maker, who trains others, does not train.

    network: as it begins. spec: how to build it again, {"name": ..., options}.
    teacher: gives the facts and the decoder.
    preconditioning: what the network predicts, as `Preconditioning` takes it.
    form: of the student, as `Student` takes it.
    fixed: more names of parameters that stay.
    null: the network's null label, as `Student` takes it.
    extension: options that the network must have, and gets with its weights where it has them not, as `extend_net` does.
    plan: drawing_time and times, as `Student` takes them.

    Raises PidistillError for a network that does not look at the time, in a form that is asked at several.
    """
    if form not in ("direct", "denoiser") and getattr(network, "timeless", False) is True:
        raise PidistillError(f"student.net: {spec['name']} does not look at the time, and a student of the form {form} is "
                             "asked at several; choose another network, or an objective whose student is asked at one")
    missing = {key: value for key, value in (extension or {}).items() if spec.get(key) != value}
    if missing:
        network, spec = extend_net(network, spec, missing, teacher.shape, count_labels(teacher.num_classes, null))
    if isinstance(preconditioning, dict):  # trajectories are smooth in t, and so is the student's clock
        preconditioning = {key: value for key, value in preconditioning.items() if key != "whole"}
    silence_dropout(network)
    named = dict(network.train().named_parameters())
    declared, untrained = getattr(network, "frozen", ()), [name for name, p in named.items() if not p.requires_grad]
    declared = declared if isinstance(declared, frozenset | set | tuple | list) else ()
    frozen = {*fixed, *(untrained if len(untrained) < len(named) else ())}
    if others := sorted(frozen - {*declared}):
        from pidistill.core.console import console  # rich, which loading a model has no need of

        console.print(f"{len(others)} of the network's {len(named)} weights are not trained, as requires_grad says of them: "
                      f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}", soft_wrap=True, markup=False)
    for name, p in named.items():
        p.requires_grad_(name not in frozen and name not in declared)
    student = Student(network, {**spec, **({"dropout": 0.0} if "dropout" in spec else {})},
                      teacher.facts(), preconditioning, teacher.decoder, form, null, **plan)
    student.teacher = name_teacher(teacher)
    return student


def silence_dropout(network: nn.Module) -> None:
    """Switch dropout off, in training mode too (Table 6)."""
    for module in network.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0
        for name in ("dropout", "dropout_prob"):  # the latter: of labels, by diffusers' DiT
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


def lend_net(teacher: Denoiser, spec: dict[str, Any]) -> nn.Module | None:
    """Lend a student the network of its teacher, if a file describes the student's so; the weights are the file's."""
    if not isinstance(teacher, Preconditioned) or not is_own(spec):
        return None
    return teacher.model if describe_net(teacher.net_spec, teacher.model)["name"] == spec["name"] else None


def start_from(path: Path, teacher: Denoiser, net: dict[str, Any] | None = None, width: float = 1.0,
               form: str = "trajectory", **plan: Any) -> Student:
    """Make a student of the teacher that begins as the student or the teacher in a folder, or in the run around it.

    net: the folder's network, if that is of the user's own; by default the teacher's, if it has that name. Else it must be
        None, as the folder has its own, and `width` 1.
    form: of the student; one in the folder must be of this form, as its network means nothing in another.
    plan: more of the student, as `make_student` takes it.

    Raises PidistillError in one line.
    """
    places = (path, path / "student", path / "teacher")
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise PidistillError(f"student.init must be teacher, random or a folder with a student or a teacher, got {path}")
    config = read_json(folder / "config.json")
    if width != 1 or (net is not None and not is_own(config.get("net"))):
        raise PidistillError("student.init names a folder with a network; leave student.net and student.width out")
    if config.get("format") not in ("pidistill-student", "pidistill-teacher"):
        raise PidistillError(f"student.init: {folder} holds no student and no teacher")
    try:
        shape, spec, (labels, null) = tuple(config["shape"]), dict(config["net"]), read_labels(config)
        classes = count_classes(labels, null)
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
    lent: Any = net or lend_net(teacher, spec)
    network = rebuild_net(spec, shape, labels, count_allowed_elements(weights), folder, lent, "student.net={}")
    state = read_tensors(weights)
    if config["format"] == "pidistill-teacher":
        state = {key.removeprefix("model."): value for key, value in state.items()}
    load_weights(network, state, folder)
    return prepare_student(network, spec | (net or {}), teacher, config.get("preconditioning", "edm"), form,
                           null=null if isinstance(null, int) else None, **plan)


def scale_width(spec: dict[str, Any], width: float) -> dict[str, Any]:
    """Give the description of a network, {"name": ..., options}, with `width` times its channels."""
    if width == 1:
        return spec
    if is_own(spec):
        raise PidistillError(f"student.width: {spec['name']} may call them anything; set student.net with its options")
    accepted = inspect.signature(find_member("nets", spec["name"])).parameters
    key = next((key for key in ("model_channels", "width") if key in accepted), None)
    if key is None:
        raise PidistillError(f"student.width: the network {spec['name']} has no channels to multiply; set student.net")
    channels = spec.get(key, accepted[key].default) * width
    if channels < 1 or channels != int(channels):
        raise PidistillError(f"student.width={width} gives {channels} {key}; choose one that gives a whole number")
    return spec | {key: int(channels)}
