"""`pidistill distill`: train a student (Algorithm 1), then measure it against its teacher."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes
from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.registry import build
from pidistill.core.seeds import labels_of, parse_integers
from pidistill.evaluation.evaluate import Evaluator, evaluate
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.pictures import drawable, write_comparison
from pidistill.evaluation.results import Evaluation
from pidistill.files.folders import write_json
from pidistill.models.denoiser import Denoiser, as_denoiser
from pidistill.models.grid import Grid
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Objective
from pidistill.objectives.schemes.autodiff import Autodiff
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import given_keys, load_config
from pidistill.training.recompute import find_recomputable_blocks
from pidistill.training.run_folder import check_run, claim
from pidistill.training.trainer import Averages, Watcher, train


def distill(teacher: Any = "bundled:digits", *, preset: str | Path | None = None, out: str | Path | None = None,
            overrides: dict[str, Any] | None = None, force: bool = False, resume: bool = False) -> Student:
    """Distil a teacher into a one-step student (Algorithm 1); returns the averaged student.

    teacher: a spec such as `bundled:digits`, a Denoiser, or any callable with a denoiser's attributes.
    preset: a preset's name or a YAML file; `digits` for the bundled teacher, else `default`.
    out: the run's folder.
    overrides: configuration keys, such as {"train.steps": 2000}.
    force: a run that is in the folder already is replaced, instead of refused.
    resume: it is continued; the overrides alone may differ from its settings.
    """
    values = dict(overrides or {})
    spec = teacher if isinstance(teacher, str) else getattr(teacher, "spec", None)
    values["teacher"] = spec or f"object:{type(teacher).__name__}"
    if out is not None:
        values["out"] = str(out)
    config = load_config(DistillConfig, preset or default_preset(values.get("teacher")), values)
    denoiser = load_teacher(config.teacher) if isinstance(teacher, str) else as_denoiser(teacher)
    run_distillation(config, denoiser.eval().requires_grad_(False), force=force, resume=resume, given=given_keys(overrides))
    return load_student(config.out)


def default_preset(teacher: str | None) -> str:
    """Choose the preset of a teacher for which none is named."""
    return "digits" if teacher == "bundled:digits" else "default"


@dataclass(frozen=True)
class DistillationResult:
    """What a distillation has made: the run's folder, the student at each EMA rate, their evaluation, seconds in all."""

    folder: Path
    students: dict[float, Student]
    evaluation: Evaluation
    seconds: float


def run_distillation(config: DistillConfig, teacher: Denoiser | None = None, *, force: bool = False, resume: bool = False,
                     given: Collection[str] = (), step: int | None = None,
                     began: float | None = None) -> DistillationResult | None:
    """Train (or continue) a run in the folder `config.out`, save the student, evaluate it at every EMA rate.

    config: of the run.
    teacher: the one that `config.teacher` names, if it is loaded already.
    force, resume, given, step: see `claim`, which gives the run its folder.
    began: `time.perf_counter()` from which the run's seconds are counted.

    Returns None on all but the main process.
    """
    began = time.perf_counter() if began is None else began
    job = Distillation(config, load_teacher(config.teacher) if teacher is None else teacher)
    with claim(config, force, resume, given, step) as folder:
        students = job.train(folder)
        if students is None:
            return None
        console.print(f"evaluating {config.evaluate.num} images of teacher and student")
        return job.evaluate(folder, students, began)


def resume_distillation(folder: Path, overrides: Sequence[str] = (), step: int | None = None,
                        began: float | None = None) -> DistillationResult | None:
    """Continue a distillation from its newest whole checkpoint, or from that of `step`; later ones are set aside then.

    folder: of the run, which may have been moved.
    overrides: `key=value`; these settings may differ from those that the run has had.
    began: as in `run_distillation`.
    """
    check_run(folder)
    config = load_config(DistillConfig, folder / "config.yaml", [*overrides])
    return run_distillation(config.model_copy(update={"out": str(folder)}), resume=True, given=given_keys([*overrides]),
                            step=step, began=began)


class Distillation:
    """A distillation that is ready to be run: mistakes in its settings, and missing files, were found when it was made."""

    def __init__(self, config: DistillConfig, teacher: Denoiser):
        self.config, self.teacher = config, teacher
        self.objective = build_objective(config, teacher)
        Measure(config.evaluate.features, config.evaluate.reference, teacher.image_shape)  # missing files are found now
        self.seeds = parse_integers(config.preview.seeds, "preview.seeds", most=1000)

    def train(self, folder: Path, evaluator: Evaluator | None = None) -> dict[float, Student] | None:
        """Train (or continue) in a folder and save the student there; gives it at each EMA rate (main process only).

        evaluator: measures the student every `evaluate.every` steps; without it a new one does.
        """
        averages, main = train(self.objective, self.config, folder, self.make_watchers(evaluator))
        if not main:
            return None
        config, students = self.config, select_students(averages)
        source = {"teacher_source": self.teacher.origin} if self.teacher.origin else {}
        provenance = {"teacher": config.teacher, **source, "seed": config.train.seed, "steps": config.train.steps,
                      "commit": find_commit(), "versions": list_versions()}
        students[config.ema[0]].save(folder / "student", provenance, students)
        return students

    def make_watchers(self, evaluator: Evaluator | None) -> list[Watcher]:
        """Make what looks at the student while it is trained: previews, and with `evaluate.every` measurements."""
        config, watchers = self.config, []
        if drawable(self.teacher.image_shape):
            watchers.append(Watcher(config.preview.every, Preview(self.teacher, self.seeds)))
        if config.evaluate.every and not processes.is_main():
            watchers.append(Watcher(config.evaluate.every, lambda *_: None))
        elif config.evaluate.every:
            measure = evaluator or Evaluator(self.teacher, num=config.evaluate.num, batch=config.evaluate.batch,
                                             features=config.evaluate.features, reference=config.evaluate.reference)
            watchers.append(Watcher(config.evaluate.every,
                                    lambda averages, *_: measure.compare(select_students(averages))))
        return watchers

    def evaluate(self, folder: Path, students: dict[float, Student], began: float) -> DistillationResult:
        """Measure teacher and students on the same seeds and write results.json.

        folder, students: of the run, as `train` gives them.
        began: as in `run_distillation`.
        """
        config = self.config
        first, *others = students
        named = {"student": students[first]} | {f"student, EMA {rate}": students[rate] for rate in others}
        evaluation = evaluate(self.teacher, named, num=config.evaluate.num, batch=config.evaluate.batch,
                              features=config.evaluate.features, reference=config.evaluate.reference)
        seconds = round(time.perf_counter() - began, 1)
        write_json(folder / "results.json", evaluation.record() | {
            "seconds": seconds, "seeds": f"0-{config.evaluate.num - 1}", "ema": list(students),
            "train_seed": config.train.seed, "steps": config.train.steps, "batch": config.train.batch,
            "threads": torch.get_num_threads(), "commit": find_commit(), "versions": list_versions()})
        return DistillationResult(folder, students, evaluation, seconds)


def build_objective(config: DistillConfig, teacher: Denoiser, device: str = "cpu") -> Objective:
    """Build the objective over a new student of the teacher. device: `meta` for a dry run, else `cpu`.

    Raises PidistillError for settings that cannot be had together.
    """
    torch.manual_seed(config.train.seed)  # initial weights, where they are random
    grid = Grid(teacher.grid_times(config.grid.points))
    if grid.points < config.grid.points:
        console.print(f"grid.points={config.grid.points}: {grid.points} different ones among the teacher's noise levels")
    options = dict(config.objective)
    with torch.device(device):
        student = make_student(teacher, config.student.init, config.student.net, config.student.width)
        objective: Objective = build("objectives", options.pop("name"), student, teacher, grid, **options)
    if config.train.recompute:
        find_recomputable_blocks(student)
        if isinstance(getattr(objective, "scheme", None), Autodiff):
            raise PidistillError("train.recompute=true does not go with objective.scheme=autodiff, whose derivative PyTorch "
                                 "cannot compute again; set train.microbatch=auto instead")
    return objective


def select_students(averages: Averages) -> dict[float, Student]:
    """Select the averaged students, by EMA rate."""
    return {rate: student for rate, networks in averages.items() if isinstance(student := networks["student"], Student)}


class Preview:
    """Draws teacher and student for the same fixed seeds, the teacher once; the last picture is also the run's own."""

    def __init__(self, teacher: Denoiser, seeds: list[int]):
        self.teacher, self.seeds = teacher, seeds
        self.labels = labels_of(seeds, teacher.num_classes)
        self.images: torch.Tensor | None = None

    def __call__(self, averages: Averages, step: int, folder: Path) -> None:
        student = next(iter(select_students(averages).values()))
        if self.images is None:
            self.images = sample_teacher(self.teacher, self.seeds, self.labels)
        for path in (folder / "samples" / f"{step:06d}.png", folder / "teacher-student.png"):
            write_comparison(path, self.images, student.sample(self.seeds, self.labels))
