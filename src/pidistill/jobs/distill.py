"""`pidistill distill`: train a student, then measure it against its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.provenance import commit, versions
from pidistill.core.registry import build
from pidistill.core.seeds import labels_of, parse_integers
from pidistill.evaluation.evaluate import Evaluator, evaluate
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.pictures import drawable, write_comparison
from pidistill.files.folders import write_json
from pidistill.models.denoiser import Denoiser, as_denoiser
from pidistill.models.grid import Grid
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Objective
from pidistill.objectives.schemes.autodiff import Autodiff
from pidistill.training import run_folder as runs
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import given_keys, load_config
from pidistill.training.recompute import recomputable
from pidistill.training.trainer import Averages, Watcher, train


def distill(teacher: Any = "bundled:digits", *, preset: str | Path | None = None, out: str | Path | None = None,
            overrides: dict[str, Any] | None = None, force: bool = False, resume: bool = False) -> Student:
    """Distil a teacher into a one-step student (Algorithm 1); returns the averaged student.

    teacher: a spec such as `bundled:digits`, a Denoiser, or any callable with a denoiser's attributes.
    preset: a preset's name or a YAML file; `digits` for the bundled teacher, else `default`.
    overrides: configuration keys, such as {"train.steps": 2000}. The run's folder is `out`; a run that is there already is
    refused, replaced with `force`, or continued with `resume`, where the overrides alone may differ from its settings.
    """
    values = dict(overrides or {})
    spec = teacher if isinstance(teacher, str) else getattr(teacher, "spec", None)
    values["teacher"] = spec or f"object:{type(teacher).__name__}"
    if out is not None:
        values["out"] = str(out)
    config = load_config(DistillConfig, preset or default_preset(values.get("teacher")), values)
    denoiser = load_teacher(config.teacher) if isinstance(teacher, str) else as_denoiser(teacher)
    run(config, denoiser.eval().requires_grad_(False), lambda: runs.claim(config, force, resume, given_keys(overrides)))
    return load_student(config.out)


def default_preset(teacher: str | None) -> str:
    return "digits" if teacher == "bundled:digits" else "default"


def fit(config: DistillConfig, teacher: Denoiser, claim: Callable[[], Path],
        evaluator: Evaluator | None = None) -> tuple[Path, dict[float, Student]] | None:
    """Train (or continue) in the folder that `claim` gives and save the student there.

    Returns the folder and the averaged students by EMA rate (main process only). evaluator: measures the student every
    `evaluate.every` steps; made here if none is given.
    """
    objective = build_objective(config, teacher)
    Measure(config.evaluate.features, config.evaluate.reference, teacher.image_shape)  # missing files are found now
    seeds = parse_integers(config.preview.seeds, "preview.seeds", most=1000)
    folder = claim()  # only now: a mistake above must not leave, or replace, a run

    watchers = []
    if drawable(teacher.image_shape):
        watchers.append(Watcher(config.preview.every, Preview(teacher, seeds)))
    if config.evaluate.every and not runs.is_main_process():
        watchers.append(Watcher(config.evaluate.every, lambda *_: None))
    elif config.evaluate.every:
        measure = evaluator or Evaluator(teacher, num=config.evaluate.num, batch=config.evaluate.batch,
                                         features=config.evaluate.features, reference=config.evaluate.reference)
        watchers.append(Watcher(config.evaluate.every, lambda averages, *_: measure.each(students_of(averages))))
    averages, main = train(objective, config, folder, watchers)
    if not main:
        return None
    students = students_of(averages)
    source = {"teacher_source": teacher.origin} if teacher.origin else {}
    provenance = {"teacher": config.teacher, **source, "seed": config.train.seed, "steps": config.train.steps,
                  "commit": commit(), "versions": versions()}
    students[config.ema[0]].save(folder / "student", provenance, students)
    return folder, students


def build_objective(config: DistillConfig, teacher: Denoiser, device: str = "cpu") -> Objective:
    """The objective over a new student of the teacher. device: `meta` for a dry run, else `cpu`."""
    torch.manual_seed(config.train.seed)  # initial weights, where they are random
    grid = Grid(teacher.grid_times(config.grid.points))
    if grid.points < config.grid.points:
        console.print(f"grid.points={config.grid.points}: {grid.points} different ones among the teacher's noise levels")
    options = dict(config.objective)
    with torch.device(device):
        student = make_student(teacher, config.student.init, config.student.net, config.student.width)
        objective: Objective = build("objectives", options.pop("name"), student, teacher, grid, **options)
    if config.train.recompute:
        recomputable(student)
        if isinstance(getattr(objective, "scheme", None), Autodiff):
            raise PidistillError("train.recompute=true does not go with objective.scheme=autodiff, whose derivative PyTorch "
                                 "cannot compute again; set train.microbatch=auto instead")
    return objective


def students_of(averages: Averages) -> dict[float, Student]:
    return {rate: student for rate, networks in averages.items() if isinstance(student := networks["student"], Student)}


def run(config: DistillConfig, teacher: Denoiser, claim: runs.Claim, began: float | None = None) -> dict[str, Any] | None:
    """Train (or continue) in the folder that `claim` holds, save the student, evaluate it at every EMA rate.

    Returns results.json's content (main process only). began: time.perf_counter() from which `seconds` is counted.
    """
    began = time.perf_counter() if began is None else began
    with ExitStack() as held:
        fitted = fit(config, teacher, lambda: held.enter_context(claim()))
        if fitted is None:
            return None
        folder, students = fitted
        first, *others = students
        console.print(f"evaluating {config.evaluate.num} images of teacher and student")
        named = {"student": students[first]} | {f"student, EMA {rate}": students[rate] for rate in others}
        results = evaluate(teacher, named, num=config.evaluate.num, batch=config.evaluate.batch,
                           features=config.evaluate.features, reference=config.evaluate.reference)
        results |= {"seconds": round(time.perf_counter() - began, 1), "seeds": f"0-{config.evaluate.num - 1}",
                    "ema": list(students), "train_seed": config.train.seed, "steps": config.train.steps,
                    "batch": config.train.batch, "threads": torch.get_num_threads(), "commit": commit(),
                    "versions": versions()}
        write_json(folder / "results.json", results)
        return results


class Preview:
    """Teacher and student for the same fixed seeds; the teacher's part is drawn once. The last is the run's picture."""

    def __init__(self, teacher: Denoiser, seeds: list[int]):
        self.teacher, self.seeds = teacher, seeds
        self.labels = labels_of(seeds, teacher.num_classes)
        self.images: torch.Tensor | None = None

    def __call__(self, averages: Averages, step: int, folder: Path) -> None:
        student = next(iter(students_of(averages).values()))
        if self.images is None:
            self.images = sample_teacher(self.teacher, self.seeds, self.labels)
        for path in (folder / "samples" / f"{step:06d}.png", folder / "teacher-student.png"):
            write_comparison(path, self.images, student.sample(self.seeds, self.labels))


def resume(folder: Path, began: float | None = None, overrides: Sequence[str] = (),
           step: int | None = None) -> dict[str, Any] | None:
    """Continue a distillation from its newest whole checkpoint, or from that of a step; later ones are set aside then.

    overrides: `key=value`; these settings may differ from those that the run has had.
    """
    if not (folder / "config.yaml").exists():
        raise PidistillError(f"{folder} holds no run: config.yaml was expected there")
    config = load_config(DistillConfig, folder / "config.yaml", list(overrides))
    given = given_keys(list(overrides))
    return run(config, load_teacher(config.teacher), lambda: runs.reopen(folder, config, given, step), began)
