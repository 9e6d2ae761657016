"""A distillation, or a stage of one: its training with all that looks at the student meanwhile, and its measurement."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.registry import suggest_choices
from pidistill.core.seeds import labels_of, parse_integers
from pidistill.evaluation.evaluate import Evaluator, evaluate
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.pictures import drawable, write_comparison
from pidistill.evaluation.results import Evaluation
from pidistill.files.folders import write_json
from pidistill.files.pairs import PlannedPairs
from pidistill.files.reading import read_json
from pidistill.jobs.best import FIRST_SEED, BestStudent
from pidistill.jobs.build_objective import build_objective, open_data
from pidistill.jobs.pairs import fill_pairs
from pidistill.jobs.report.gather import PICTURE
from pidistill.jobs.report.write import refresh_report
from pidistill.jobs.stages import PREVIOUS, find_own_net
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import Student, load_student
from pidistill.models.student_teacher import make_teacher
from pidistill.models.teachers.base import find_licence
from pidistill.objectives.base import Objective
from pidistill.training.config import DistillConfig
from pidistill.training.sharding import is_fsdp_launch
from pidistill.training.trackers import check_trackers
from pidistill.training.trainer import Averages, StepTaken, Watcher, take_steps, wait_for_all


@dataclass(frozen=True)
class DistillationResult:
    """What a distillation has made: the run's folder, the student at each EMA rate, their evaluation, seconds in all."""

    folder: Path
    students: dict[float, Student]
    evaluation: Evaluation
    seconds: float


class Distillation:
    """A distillation that is ready to be run: mistakes in its settings, and missing files, were found when it was made.

    config, teacher: of the run.
    previous: the folder of the stage before, for `student.init=previous` and `teacher=previous`.
    net: its student's network, if that is of the user's own.

    tutor: what the student learns from: the teacher, or the student of the stage before. It is measured against the teacher.
    """

    def __init__(self, config: DistillConfig, teacher: Denoiser, previous: Path | None = None,
                 net: dict[str, Any] | None = None):
        self.config, self.teacher = config, teacher
        check_trackers(config.log.trackers)
        self.tutor = teacher
        if config.teacher == PREVIOUS and previous:
            self.tutor = make_teacher(load_student(previous, net=find_own_net(previous / "student", [config], teacher)))
        self.data = open_data(config, self.tutor)
        self.objective = build_objective(config, self.tutor, previous=previous, net=net, data=self.data)
        self.steps = config.train.steps
        measure = Measure(config.evaluate.features, config.evaluate.reference, teacher.image_shape,  # finds missing files
                          metrics=("frechet", "trajectory_rmse"))
        self.check_best(measure)
        self.best, self.chosen = config.evaluate.keep_best, dict[str, Any]()
        self.seeds = parse_integers(config.preview.seeds, "preview.seeds", most=1000)

    def train_in_steps(self, folder: Path, evaluator: Evaluator | None = None) -> Generator[
            StepTaken, None, dict[float, Student] | None]:
        """Train (or continue) in a folder and save the student there; gives it at each EMA rate (main process only).

        evaluator: measures the student every `evaluate.every` steps; without it a new one does.
        """
        if isinstance(self.data, PlannedPairs):
            fill_pairs(self.data, self.tutor, self.config.pairs, folder / "pairs")
        trained = yield from take_steps(self.objective, self.config, folder, self.make_watchers(evaluator))
        self.steps = trained.steps
        students = select_students(trained.averages) if trained.main else None
        if students is not None and self.best and (folder / "best").is_dir():
            students = BestStudent.load(folder, find_own_net(folder / "best", [self.config], self.teacher))
            best = read_json(folder / "best" / "provenance.json")
            self.chosen = {key: best[key] for key in ("steps", "metric", "value")}
        if students is not None:
            self.save(folder, students)
        wait_for_all()  # the others go on to read the student
        return students

    def save(self, folder: Path, students: dict[float, Student]) -> None:
        """Save the students, by EMA rate, as FOLDER/student."""
        provenance = self.describe() | {"steps": self.steps} | self.chosen
        next(iter(students.values())).save(folder / "student", provenance, students)

    def describe(self) -> dict[str, Any]:
        """Describe where a student is from, for its provenance.json."""
        source = {"teacher_source": self.teacher.origin} if self.teacher.origin else {}
        return {"teacher": name_first_teacher(self.config, self.teacher), **source,
                "teacher_licence": find_licence(self.teacher), "seed": self.config.train.seed,
                "commit": find_commit(), "versions": list_versions()}

    def check_best(self, measure: Measure) -> None:
        """Refuse to keep the best student by a metric that is not measured. measure: what is."""
        plan, known = self.config.evaluate, [*([measure.key] if measure.net else []), "trajectory_rmse"]
        if plan.keep_best and not plan.every:
            raise PidistillError(f"evaluate.keep_best={plan.keep_best} chooses among the measurements of evaluate.every, "
                                 "which is not set")
        if plan.keep_best and plan.keep_best not in known:
            raise suggest_choices("metric of evaluate.keep_best", plan.keep_best, known)

    def make_watchers(self, evaluator: Evaluator | None) -> list[Watcher]:
        """Make what looks at the student while it is trained: previews, and with `evaluate.every` measurements."""
        config, watchers = self.config, []
        if drawable(self.teacher.image_shape):
            watchers.append(Watcher(config.preview.every, Preview(self.teacher, self.seeds)))
        if type(self.objective).diagnose is not Objective.diagnose and not is_fsdp_launch():
            watchers.append(Watcher(config.preview.every, lambda averages, *_: self.objective.diagnose(
                next(iter(select_students(averages).values())))))
        if config.evaluate.every and not processes.is_main():
            watchers.append(Watcher(config.evaluate.every, lambda *_: None))
        elif config.evaluate.every:
            plan = config.evaluate
            given = None if plan.keep_best else evaluator  # whose seeds are the report's
            measure = given or Evaluator(self.teacher, num=plan.num, batch=plan.batch, features=plan.features,
                                             reference=plan.reference, first_seed=FIRST_SEED if plan.keep_best else 0)
            best = BestStudent(measure, plan.keep_best, self.describe()) if plan.keep_best else None
            watchers.append(Watcher(config.evaluate.every, lambda averages, step, folder: best(
                select_students(averages), step, folder) if best else measure.compare(select_students(averages))))
        return watchers

    def evaluate(self, folder: Path, students: dict[float, Student], began: float,
                 earlier: dict[str, Student]) -> DistillationResult:
        """Measure teacher and students on the same seeds and write results.json.

        folder, students: of the run, as `train` gives them.
        began: as in `distil_in_steps`.
        earlier: students of the stages before, by the names of their rows.
        """
        config = self.config
        first, *others = students
        named = earlier | {"student": students[first]} | {f"student, EMA {rate}": students[rate] for rate in others}
        evaluation = evaluate(self.teacher, named, num=config.evaluate.num, batch=config.evaluate.batch,
                              features=config.evaluate.features, reference=config.evaluate.reference)
        seconds = round(time.perf_counter() - began, 1)
        write_json(folder / "results.json", evaluation.record() | {
            "seconds": seconds, "seeds": f"0-{config.evaluate.num - 1}", "ema": list(students),
            "train_seed": config.train.seed, "steps": self.steps, "batch": config.train.batch,
            "threads": torch.get_num_threads(), "commit": find_commit(), "versions": list_versions()})
        return DistillationResult(folder, students, evaluation, seconds)


def name_first_teacher(config: DistillConfig, teacher: Denoiser) -> str:
    """Name the teacher of a distillation, also of a stage that learns from the one before, as `load_teacher` takes it."""
    return config.teacher if config.teacher != PREVIOUS else teacher.spec or f"object:{type(teacher).__name__}"


def select_students(averages: Averages) -> dict[float, Student]:
    """Select the averaged students, by EMA rate."""
    return {rate: student for rate, networks in averages.items() if isinstance(student := networks["student"], Student)}


class Preview:
    """Draws teacher and student for the same fixed seeds, the teacher once, and writes the run's page anew.

    The last picture is also the run's own.
    """

    def __init__(self, teacher: Denoiser, seeds: list[int]):
        self.teacher, self.seeds = teacher, seeds
        self.labels = labels_of(seeds, teacher.num_classes)
        self.images: torch.Tensor | None = None

    def __call__(self, averages: Averages, step: int, folder: Path) -> None:
        student = next(iter(select_students(averages).values()))
        if self.images is None:
            self.images = sample_teacher(self.teacher, self.seeds, self.labels)
        for path in (folder / "samples" / f"{step:06d}.png", folder / PICTURE):
            write_comparison(path, self.images, student.sample(self.seeds, self.labels))
        refresh_report(folder)
