"""`pidistill convert`: write any teacher that is a network as a folder of config.json and safetensors."""

from __future__ import annotations

from pathlib import Path

from pidistill.core.errors import PidistillError
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.tensors import DTYPES, cast_tensors
from pidistill.files.folders import write_folder
from pidistill.files.reading import read_json
from pidistill.models.denoiser import Preconditioned
from pidistill.models.teachers.base import collect_tensors, describe_teacher, load_teacher


def convert(spec: str, out: Path, *, dtype: str = "fp32", command: str = "") -> Path:
    """Write OUT/config.json, model.safetensors (decoder.safetensors) and provenance.json; OUT is a teacher spec then.

    Raises PidistillError for a teacher that has no network.

    spec: of the teacher.
    out: the folder; what is there is replaced.
    dtype: of the weights in the file, fp32, fp16 or bf16; they are float32 again once loaded.
    command: what the user typed, for the provenance.
    """
    teacher = load_teacher(spec)
    if not isinstance(teacher, Preconditioned):
        raise PidistillError(f"{spec} is a black box: it has no network whose weights could be written, only answers")
    if dtype not in DTYPES:
        raise PidistillError(f"--dtype must be fp32, fp16 or bf16, got {dtype}")
    files = {name: cast_tensors(tensors, DTYPES[dtype]) for name, tensors in collect_tensors(teacher).items()}
    provenance = {"spec": spec, "command": command, "dtype": dtype, "commit": find_commit(), "versions": list_versions()}
    if teacher.origin:
        provenance |= {"source": teacher.origin}
    elif teacher.source and (teacher.source / "provenance.json").exists():
        provenance |= {"source": read_json(teacher.source / "provenance.json")}
    write_folder(out, files, {"config": describe_teacher(teacher), "provenance": provenance})
    return out
