"""`pidistill evaluate`: what a student loses and gains against its teacher; the checkpoints of a run as a curve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.tables import UNITS
from pidistill.files.weights import load_weights, read_tensors
from pidistill.models.denoiser import Denoiser
from pidistill.models.load import teacher_spec_of
from pidistill.models.student import Student
from pidistill.models.student_init import make_student
from pidistill.training.checkpoint import by_step
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config


def checkpoints_of(run: Path, teacher: Denoiser) -> Iterator[tuple[int, float, Student]]:
    """(step, EMA rate, student) of every checkpoint of a distillation's folder."""
    config = load_config(DistillConfig, run / "config.yaml")
    found = by_step(run / "checkpoints")
    if not found:
        raise PidistillError(f"{run} holds no checkpoints; checkpoint.every and checkpoint.keep say which are kept")
    for folder in found:
        for rate in config.ema:
            path = folder / f"student-ema-{rate}.safetensors"
            student = make_student(teacher, config.student.init, config.student.net, config.student.width)
            load_weights(student, read_tensors(path), path)
            yield int(folder.name), rate, student.eval().requires_grad_(False)


def evaluate_checkpoints(run: Path, teacher: Denoiser, measure: Measure, *, num: int, batch: int | None,
                         first_seed: int = 0, repeats: int = 1) -> dict[str, Any]:
    """Every checkpoint and EMA rate of a run: a record as `plots.plot_curves` draws it, each repeat a line.

    What is finished lies in RUN/evaluation/ and is not measured again.
    """
    curves: dict[str, Any] = {}
    for step, rate, student in checkpoints_of(run, teacher):
        student = student.to(measure.device)
        lines = curves.setdefault(str(rate), {"label": f"EMA {rate}", "runs": [{} for _ in range(repeats)]})["runs"]
        for k, line in enumerate(lines):
            start = first_seed + k * num
            name = f"step {step}, EMA {rate}"
            row = measure_models({name: Subject.of(student)}, measure, range(start, start + num), batch=batch,
                                 num_classes=student.num_classes, keep=run / "evaluation", what=name)[name]
            for key in UNITS.keys() & row.keys():
                line.setdefault(key, []).append((step, row[key]))
    return {"curves": curves}


def pick_features(name: str, *specs: str | None) -> str | None:
    """The feature network for FD: `none`, a name, or `auto`, which is `digits` for the bundled digits and their students."""
    if name == "auto":
        return "digits" if any(spec and "bundled:digits" in (spec, teacher_spec_of(spec)) for spec in specs) else None
    return None if name == "none" else name
