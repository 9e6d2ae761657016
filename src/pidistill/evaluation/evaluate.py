"""A student is evaluated against its teacher: both draw from the same seeds, and are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pidistill.core.console import track
from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.core.tensors import find_device
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.results import Evaluation, Repeats
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.tables import UNITS
from pidistill.files.folders import write_tensors
from pidistill.files.weights import read_tensors
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import STEPS, Sampler, sample_teacher
from pidistill.models.student import Student


def evaluate(teacher: Denoiser | None, students: Student | dict[str, Student] | None, *, num: int = 5000,
             batch: int | None = 250, first_seed: int = 0, features: str | None = None, reference: str | None = None,
             metrics: Sequence[str] = ("frechet", "trajectory_rmse"), steps: int = STEPS, sampler: Sampler | None = None,
             keep: Path | None = None) -> Evaluation:
    """Evaluate a teacher, students or both on the same seeds: nfe, images per second and metrics of each.

    students: one, or several by name.
    num, first_seed: images of the seeds first_seed ... first_seed + num - 1, with the labels that the seeds give.
    batch: images at a time; None: what the memory holds.
    features, reference, metrics: as in `Measure`; metrics of features are taken where features are named, each student's
        `trajectory_rmse` where the teacher is there too.
    sampler: of the teacher; by default Heun's with `steps` steps.
    keep: a folder in which measurements stay, so that an interrupted evaluation goes on.
    """
    students = {"student": students} if isinstance(students, Student) else students or {}
    models: list[Any] = [model for model in (teacher, *students.values()) if model is not None]
    measure = Measure(features, reference, models[0].image_shape, find_device(models[0]), metrics)
    subjects = {"teacher": Subject.of(teacher, sampler or Sampler(steps=steps))} if teacher is not None else {}
    subjects |= {name: Subject.of(student) for name, student in students.items()}
    from_teacher = teacher is not None and students and "trajectory_rmse" in metrics
    seeds = range(first_seed, first_seed + num)
    return Evaluation(measure_models(subjects, measure, seeds, num_classes=models[0].num_classes, batch=batch, keep=keep,
                                     solution="teacher" if from_teacher else None))


def evaluate_repeats(repeats: int, num: int, first_seed: int = 0, **options: Any) -> Repeats:
    """Evaluate on `repeats` disjoint sets of `num` seeds, one after the other, as EDM does (0-49999, 50000-99999, ...).

    first_seed: of the first set. options: of `evaluate`.
    """
    return Repeats([evaluate(num=num, first_seed=first_seed + k * num, **options) for k in range(repeats)], list(UNITS))


class Evaluator:
    """An evaluator measures many students of one teacher; the teacher's images and their FD are computed once.

    num, first_seed: images, as in `evaluate`. batch: images at a time.
    features, reference: as in `Measure`.
    cache: a file that keeps the teacher's images between programs.
    """

    def __init__(self, teacher: Denoiser, *, num: int = 5000, batch: int = 250, features: str | None = None,
                 reference: str | None = None, cache: Path | None = None, first_seed: int = 0):
        self.measure = Measure(features, reference, teacher.image_shape, find_device(teacher),
                               ("frechet", "trajectory_rmse"))
        self.batch, self.seeds = batch, range(first_seed, first_seed + num)
        self.labels = labels_of(self.seeds, teacher.num_classes)
        if cache and cache.exists():
            self.solutions = read_tensors(cache)["images"]
        else:
            self.solutions = torch.cat([
                sample_teacher(teacher, self.seeds[k:k + batch], None if self.labels is None else self.labels[k:k + batch])
                for k in track(range(0, num, batch), "drawing the teacher's images")])
            if cache:
                write_tensors(cache, {"images": self.solutions})
        if self.solutions.shape != (num, *teacher.image_shape):
            raise PidistillError(f"{cache} holds {tuple(self.solutions.shape)}, not {num} images of this teacher; delete it")
        self.teacher = self.measure(self.solutions)

    def __call__(self, student: Student) -> dict[str, float]:
        """Measure a student: `trajectory_rmse`, and `fd` or `fid` where a feature network is named."""
        images = student.sample(self.seeds, self.labels, batch_size=self.batch, clip=False)
        return self.measure(images, self.solutions)

    def compare(self, students: dict[float, Student]) -> dict[str, float]:
        """Measure students by EMA rate, for a run's log: the first one's numbers, and those of the others as `KEY@RATE`."""
        first, *_ = students
        return {key if rate == first else f"{key}@{rate}": value for rate, student in students.items()
                for key, value in self(student).items()}
