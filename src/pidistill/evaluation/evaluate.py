"""`pidistill evaluate`: what the student loses and gains against its teacher."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.core import processes as parallel
from pidistill.core.console import track
from pidistill.core.errors import PidistillError
from pidistill.core.provenance import commit, versions
from pidistill.core.seeds import labels_of
from pidistill.evaluation.measure import Measure, Tally
from pidistill.files.weights import load_weights, read_json, read_tensors, write_json, write_tensors
from pidistill.models.batch_size import fitting_batch
from pidistill.models.denoiser import Denoiser, device_of
from pidistill.models.load import teacher_spec_of
from pidistill.models.samplers.base import STEPS, Sampler, sample_teacher
from pidistill.models.student import Student, make_student
from pidistill.nets.features.base import fingerprint
from pidistill.training.checkpoint import by_step
from pidistill.training.config_file import DistillConfig, load_config

SAVE_EVERY = 60.0  # seconds between two records of what has been measured
UNITS = {"fid": "FID", "fd_dinov2": "FD-DINOv2", "fd": "FD %", "is": "IS", "kid": "KID x 1000", "precision": "precision",
         "recall": "recall", "trajectory_rmse": "rms to teacher"}
FORMS = {"fid": ".2f", "fd_dinov2": ".1f", "fd": ".2f", "is": ".2f", "kid": ".4g", "precision": ".3f", "recall": ".3f",
         "trajectory_rmse": ".3f"}


class Subject:
    """A model that draws images: how long it takes, and how often its network is called.

    draw: (seeds, labels, images at a time) -> (B, C, H, W) on the CPU. settings: what makes its images what they are.
    """

    def __init__(self, network: torch.nn.Module, draw: Callable[[Sequence[int], Tensor | None, int], Tensor],
                 settings: dict[str, Any], model: torch.nn.Module | None = None):
        self.network, self.draw, self.settings, self.model = network, draw, settings, model or network
        self.seconds, self.calls, self.batches, self.images, self.at_once = 0.0, 0, 0, 0, 0

    @classmethod
    def of(cls, model: Student | Denoiser, sampler: Sampler | None = None) -> Subject:
        """A student, or a teacher with a sampler."""
        if isinstance(model, Student):
            student = model
            return cls(model.net, lambda seeds, y, n: student.sample(seeds, y, batch_size=n, clip=False),
                       {"weights": fingerprint(model.net)}, model)
        teacher, chosen = model, sampler or Sampler()
        return cls(model, lambda seeds, y, n: sample_teacher(teacher, seeds, y, sampler=chosen, batch_size=n),
                   {"weights": fingerprint(model), "teacher": model.spec, "sampler": str(chosen)})

    def run(self, seeds: Sequence[int], labels: Tensor | None) -> Tensor:
        """Images of these seeds; in smaller parts from now on, if the memory does not hold them at once."""
        hook = self.network.register_forward_hook(self._count)
        self.at_once = min(self.at_once or len(seeds), len(seeds))
        began = time.perf_counter()
        try:
            while True:
                calls = self.calls
                try:
                    images = self.draw(seeds, labels, self.at_once)  # ends on the CPU, so the device has finished
                    break
                except torch.OutOfMemoryError:
                    if self.at_once == 1:
                        raise PidistillError("the memory does not hold a single image") from None
                    self.at_once, self.calls = -(-self.at_once // 2), calls
                    torch.cuda.empty_cache()
        finally:
            hook.remove()
        self.seconds += time.perf_counter() - began
        self.batches += -(-len(seeds) // self.at_once)
        self.images += len(seeds)
        return images

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def state(self) -> Tensor:
        return torch.tensor([self.seconds, self.calls, self.batches, self.images], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        self.seconds, self.calls, self.batches, self.images = state[0].item(), *(int(n) for n in state[1:].tolist())

    def result(self) -> dict[str, Any]:
        """Over all processes, which draw side by side."""
        total = self.state()
        parallel.add_up([total])
        seconds, calls, batches, images = total.tolist()
        seconds /= parallel.size()
        return {"nfe": round(calls / batches), "images_per_s": images / seconds, "seconds": seconds}


def measure_models(subjects: dict[str, Subject], measure: Measure, seeds: range, *, num_classes: int = 0,
                   batch: int | None = None, keep: Path | None = None, solution: str | None = None,
                   what: str = "evaluating") -> dict[str, dict[str, Any]]:
    """The numbers of each subject over the same seeds, labels from the seeds: nfe, images_per_s, seconds and the metrics.

    Subjects take turns batch by batch, so that a noisy machine slows them alike. batch: None finds what the memory holds.
    keep: a folder in which finished rows stay (JSON), and unfinished ones every minute, so that a program that was
    interrupted goes on. solution: the subject that the others' distance to the teacher's solution is taken from. Several
    processes share the batches.
    """
    for subject in subjects.values():
        subject.at_once = batch or min(fitting_batch(subject.model, device_of(subject.model)), len(seeds))
    turn = batch or max(subject.at_once for subject in subjects.values())
    rows = {name: Row(name, subject, measure, seeds, turn, keep, solution if name != solution else None)
            for name, subject in subjects.items()}
    turns = range(parallel.rank() * turn, len(seeds), parallel.size() * turn)
    for k in track(turns, what):
        part = seeds[k:k + turn]
        waiting = [row for row in rows.values() if row.result is None and row.done <= k]
        labels, solutions = labels_of(part, num_classes), None
        if solution and any(row.name != solution for row in waiting):
            mine = rows[solution]
            again = lambda subject=mine.subject, part=part, y=labels: subject.draw(part, y, subject.at_once)
            solutions = mine.step(part, labels, k) if mine in waiting else again()
            waiting = [row for row in waiting if row is not mine]
        for row in waiting:
            row.step(part, labels, k, solutions)
    return {name: row.finish() for name, row in rows.items()}


class Row:
    """One subject's sums while they are taken, and their record on disk."""

    def __init__(self, name: str, subject: Subject, measure: Measure, seeds: range, turn: int, keep: Path | None,
                 solution: str | None):
        self.name, self.subject, self.seeds, self.done, self.saved = name, subject, seeds, 0, time.monotonic()
        self.tally: Tally = measure.start(len(seeds), solution is not None)
        self.result: dict[str, Any] | None = None
        self.settings = {**subject.settings, "seeds": f"{seeds[0]}-{seeds[-1]}", "features": measure.features,
                         "features_sha256": measure.hash, "metrics": sorted(self.tally.metrics),
                         "reference": measure.reference.source if measure.reference else None}
        self.record = self.partial = None
        if keep is None:
            return
        mark = hashlib.sha256(json.dumps([self.settings, measure.reference and measure.reference.mean.tolist()],
                                         sort_keys=True).encode()).hexdigest()[:12]
        slug = re.sub(r"[^\w.=-]+", "_", name)[:60]
        self.record = keep / f"{slug}-{mark}.json"
        self.partial = keep / f"{slug}-{mark}-{turn}-{parallel.rank()}of{parallel.size()}.safetensors"
        if self.record.exists():
            self.result = read_json(self.record)
        elif self.partial.exists():
            state = read_tensors(self.partial)
            self.done = int(state.pop("_done").item())
            self.subject.load(state.pop("_subject"))
            self.tally.load(state)

    def step(self, seeds: range, labels: Tensor | None, k: int, solutions: Tensor | None = None) -> Tensor:
        images = self.subject.run(seeds, labels)
        self.tally.add(images, range(k, k + len(seeds)), seeds, solutions)
        self.done = k + len(seeds)
        if self.partial and time.monotonic() - self.saved > SAVE_EVERY:
            write_tensors(self.partial, {**self.tally.state(), "_done": torch.tensor([self.done]),
                                         "_subject": self.subject.state()})
            self.saved = time.monotonic()
        return images

    def finish(self) -> dict[str, Any]:
        """The numbers over all processes; what lies on disk beside them is removed."""
        if self.result is None:
            self.result = {**self.subject.result(), **self.tally.result(), **self.settings}
            if self.record and parallel.rank() == 0:
                write_json(self.record, self.result)
            if self.partial:
                self.partial.unlink(missing_ok=True)
        return self.result


def evaluate(teacher: Denoiser | None, students: Student | dict[str, Student] | None, *, num: int = 5000,
             batch: int | None = 250, first_seed: int = 0, features: str | None = None, reference: str | None = None,
             metrics: Sequence[str] = ("frechet", "trajectory_rmse"), steps: int = STEPS, sampler: Sampler | None = None,
             keep: Path | None = None) -> dict[str, Any]:
    """Evaluate on seeds first_seed ... first_seed + num - 1, labels from the seeds; teacher, students by name, or both.

    Gives nfe and images_per_s of each and the metrics: those of a feature network where one is named (see `Measure`), and
    each student's `trajectory_rmse` where the teacher is there too.
    """
    named = {"student": students} if isinstance(students, Student) else students or {}
    models: list[Any] = [model for model in (teacher, *named.values()) if model is not None]
    measure = Measure(features, reference, models[0].image_shape, device_of(models[0]), metrics)
    subjects = {"teacher": Subject.of(teacher, sampler or Sampler(steps=steps))} if teacher is not None else {}
    subjects |= {name: Subject.of(student) for name, student in named.items()}
    both = teacher is not None and named and "trajectory_rmse" in metrics
    seeds = range(first_seed, first_seed + num)
    results: dict[str, Any] = dict(measure_models(subjects, measure, seeds, num_classes=models[0].num_classes, batch=batch,
                                                  keep=keep, solution="teacher" if both else None))
    if "teacher" in results and "student" in results:
        results["speedup"] = results["student"]["images_per_s"] / results["teacher"]["images_per_s"]
    return results


def evaluate_repeats(repeats: int, num: int, first_seed: int = 0, **options: Any) -> dict[str, Any]:
    """`evaluate` on `repeats` disjoint sets of `num` seeds, one after the other, as EDM does (0-49999, 50000-99999, ...).

    Gives {"repeats": [results, ...], "minimum": ..., "mean": ...}; the last two by model and metric.
    """
    each = [evaluate(num=num, first_seed=first_seed + k * num, **options) for k in range(repeats)]
    summary: dict[str, Any] = {"repeats": each}
    for name, over in (("minimum", min), ("mean", statistics.fmean)):
        summary[name] = {model: {"nfe": row["nfe"], **{key: over(result[model][key] for result in each)
                                                       for key in row if key in UNITS},
                                 "images_per_s": statistics.fmean(result[model]["images_per_s"] for result in each)}
                         for model, row in each[0].items() if isinstance(row, dict)}
    return summary


def provenance(num: int, first_seed: int, repeats: int) -> dict[str, Any]:
    """What must be known to repeat the numbers."""
    ranges = [f"{first_seed + k * num}-{first_seed + (k + 1) * num - 1}" for k in range(repeats)]
    return {"seeds": ranges, "commit": commit(), "versions": versions(), "threads": torch.get_num_threads()}


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


class Evaluator:
    """The same measurement of many students of one teacher: the teacher's images and their FD are computed once.

    cache: a file that keeps the images between programs. Seeds 0 to num - 1, as `evaluate`.
    """

    def __init__(self, teacher: Denoiser, *, num: int = 5000, batch: int = 250, features: str | None = None,
                 reference: str | None = None, cache: Path | None = None):
        self.measure = Measure(features, reference, teacher.image_shape, device_of(teacher), ("frechet", "trajectory_rmse"))
        self.batch, self.seeds = batch, range(num)
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
        """`trajectory_rmse`, and `fd` or `fid` where a feature network is named."""
        images = student.sample(self.seeds, self.labels, batch_size=self.batch, clip=False)
        return self.measure(images, self.solutions)

    def each(self, students: dict[float, Student]) -> dict[str, float]:
        """The first student's numbers, and those of the others as `KEY@RATE`: for the log of a run."""
        first, *_ = students
        return {key if rate == first else f"{key}@{rate}": value for rate, student in students.items()
                for key, value in self(student).items()}


def pick_features(name: str, *specs: str | None) -> str | None:
    """The feature network for FD: `none`, a name, or `auto`, which is `digits` for the bundled digits and their students."""
    if name == "auto":
        return "digits" if any(spec and "bundled:digits" in (spec, teacher_spec_of(spec)) for spec in specs) else None
    return None if name == "none" else name


def written(key: str, value: float) -> str:
    """A metric's number for people, in the unit of `UNITS`."""
    return format(1000 * value if key == "kid" else value, FORMS[key])


def table(results: dict[str, Any]) -> list[list[str]]:
    """Rows for people: a head, then one row a model."""
    rows = {name: row for name, row in results.items() if isinstance(row, dict) and "nfe" in row}
    measured = [key for key in UNITS if any(key in row for row in rows.values())]
    distances = [key for key in measured if key in ("fid", "fd_dinov2", "fd")] or ["fd"]
    keys = [*distances, *(key for key in measured if key not in distances)]
    lines = [["", "evaluations", *(UNITS[key] for key in keys), "images/s"]]
    lines += [[name, str(row["nfe"]), *(written(key, row[key]) if key in row else "-" for key in keys),
               f"{row['images_per_s']:.0f}"] for name, row in rows.items()]
    if "speedup" in results:
        lines.append(["ratio", f"{results['teacher']['nfe'] / results['student']['nfe']:.0f}x fewer", *[""] * len(keys),
                      f"{results['speedup']:.1f}x"])
    return lines


def repeats_table(summary: dict[str, Any], seeds: Sequence[str]) -> list[list[str]]:
    """Every repeat, then minimum and mean, model by model."""
    flat: dict[str, Any] = {}
    for model in summary["mean"]:
        flat |= {f"{model}, seeds {span}": result[model] for span, result in zip(seeds, summary["repeats"])}
        flat |= {f"{model}, {name}": summary[name][model] for name in ("minimum", "mean")}
    return table(flat)
