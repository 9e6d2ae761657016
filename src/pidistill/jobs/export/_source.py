"""A student on its way out, with what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.profiles import Average
from pidistill.files.reading import read_json
from pidistill.models.load import find_student_folder, load_model, locate_model
from pidistill.models.one_step import OneStep
from pidistill.models.student import Student
from pidistill.nets.base import Own

Runner = Callable[[Tensor, Tensor | None], Tensor]  # noise (B, C, H, W), labels (B,) or None -> images (B, C, H, W)


class Written(NamedTuple):
    """What a format has written: who draws with it, the library that it is for, and an example for its model card.

    run: draws with the files as a stranger would. library: as the hub calls it. usage: Python, with {} for names of
        `write_card`.
    """

    run: Runner
    library: str
    usage: str


@dataclass(frozen=True)
class Source:
    """A student on its way out.

    student: on the CPU, float32.
    provenance: where it is from, as its folder says.
    results: what was measured at the end of its run (results.json), or {}.
    name: of its folder, for titles.
    """

    student: Student
    provenance: dict[str, Any]
    results: dict[str, Any]
    name: str

    def make_step(self, pixels: bool = False) -> OneStep:
        """Make the student's single step, of a copy of its network."""
        return OneStep.of(self.student, pixels=pixels)


def open_source(spec: str, ema: Average | None = None, net: Own | None = None) -> Source:
    """Open the student of a folder or a run, with what is known of it. Raises PidistillError for a teacher."""
    student = load_model(spec, ema, net)
    if not isinstance(student, Student):
        raise PidistillError(f"{spec} is a teacher; a student is exported (pidistill convert writes a teacher)")
    folder = find_student_folder(locate_model(spec)) or Path(spec)
    read = lambda path: read_json(path) if path.exists() else {}
    run = folder.absolute().parent
    return Source(student, read(folder / "provenance.json"), read(run / "results.json"),
                  run.name if folder.name == "student" else folder.name)
