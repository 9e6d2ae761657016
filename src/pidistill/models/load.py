"""A model is named on the command line by a student's folder, a run, or a teacher spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.core.profiles import Average, Width
from pidistill.core.registry import list_members
from pidistill.files.folders import quote_path
from pidistill.files.hub import PREFIX, fetch_repository
from pidistill.files.reading import read_json
from pidistill.models.denoiser import Denoiser
from pidistill.models.exported import names_exported
from pidistill.models.labels import split_spec
from pidistill.models.snapshots import load_average
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import lend_net
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.base import Own, is_own


def locate_model(spec: str) -> Path:
    """Locate what a spec names: a path, or the folder of `hf:OWNER/NAME`, which is fetched."""
    return fetch_repository(spec) if spec.startswith(PREFIX) else Path(spec)


def find_student_folder(path: Path) -> Path | None:
    """Find the folder of the student that `path` is or holds; None if there is none."""
    for folder in (path, path / "student"):
        if (folder / "config.json").exists() and read_json(folder / "config.json").get("format") == "pidistill-student":
            return folder
    return None


def read_own_net(folder: Path) -> dict[str, Any] | None:
    """Read the description of the network in a student's folder, if it is one of somebody's own; else None."""
    spec = read_json(folder / "config.json").get("net")
    return spec if is_own(spec) else None


def load_model(spec: str, ema: Average | None = None, net: Own | None = None) -> Student | Denoiser:
    """Load the student that `spec` names, or else the teacher. Raises PidistillError in one line.

    ema: as `load_student` takes it; of a run that trained a teacher a width alone.
    net: as `load_student` takes it; of a teacher's folder too.
    """
    folder = find_student_folder(locate_model(spec))
    if folder:
        return load_student(folder, ema, net)
    if net is not None and not Path(spec).is_dir():
        raise PidistillError(f"{spec} is no folder; only a folder's network is named with --net")
    profile = ema if isinstance(ema, Width) and (Path(spec) / "teacher").is_dir() else None
    if ema is not None and not profile:
        raise PidistillError(f"{spec} is no student; only a student has averages to choose from with --ema")
    path = Path(spec)
    if names_exported(path):
        raise PidistillError(f"{spec} is an exported student: `pidistill compare` measures it, and its README.md says what "
                             "draws with it")
    if path.is_file():
        raise PidistillError(f"{spec} is a file; a model is a folder with config.json and model.safetensors, or KIND:REST")
    if (path / "config.yaml").exists() and not (path / "teacher").is_dir():
        raise PidistillError(f"{spec} is a run without a finished student; continue it with `pidistill resume "
                             f"{quote_path(spec)}`")
    bare = split_spec(spec)[0]
    if not Path(bare.rpartition(",net=")[0] or bare).is_dir() and bare.partition(":")[0] not in list_members("teachers"):
        raise PidistillError(f"{spec} does not exist, and is no teacher such as bundled:digits "
                             f"(kinds: {', '.join(list_members('teachers'))})")
    options: dict[str, Any] = {} if net is None else {"net": net}
    teacher = load_teacher(spec, **options)
    if profile:
        load_average(teacher, "teacher", Path(spec), profile)
    return teacher


def read_teacher_spec(spec: str) -> str | None:
    """Read which teacher a student was made from, as its provenance says; None if it does not."""
    folder = find_student_folder(locate_model(spec))
    if folder is None or not (folder / "provenance.json").exists():
        return None
    teacher = read_json(folder / "provenance.json").get("teacher")
    return teacher if isinstance(teacher, str) else None


def load_pair(spec: str, teacher: str | None = None, ema: Average | None = None,
              net: Own | None = None) -> tuple[Student, Denoiser]:
    """Load a student and its teacher, of the same shape and classes. Raises PidistillError in one line.

    spec: of a student or a run.
    teacher: its spec; by default the one that the student was made from.
    ema: as `load_student` takes it; by default the first rate of its run.
    net: as `load_student` takes it; by default the teacher's, if the student has one of that name.
    """
    folder = find_student_folder(locate_model(spec))
    if folder is None:
        load_model(spec, ema, net)  # or say what it is
        raise PidistillError(f"{spec} is a teacher; a student was expected")
    own = read_own_net(folder)
    student = load_student(folder, ema, net) if net is not None or own is None else None
    recorded = read_teacher_spec(spec)
    if not teacher and recorded and "python:" in recorded:  # a file never decides what runs
        raise PidistillError(f"{spec} had the teacher {recorded}, which is code; if you trust it, say --teacher {recorded}")
    teacher = teacher or recorded
    if not teacher:
        raise PidistillError(f"{spec} does not say which teacher it had; name it with --teacher")
    denoiser = load_teacher(teacher)
    student = student or load_student(folder, ema, lend_net(denoiser, own or {}))
    if (denoiser.shape, denoiser.num_classes) != (student.shape, student.num_classes):
        raise PidistillError(f"the teacher {teacher} gives {denoiser.shape} in {denoiser.num_classes} classes, "
                             f"the student {student.shape} in {student.num_classes}")
    return student, denoiser
