"""`pidistill distill`: train a student, then measure it against its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pidistill import runs
from pidistill.config import DistillConfig, load_config
from pidistill.denoiser import Denoiser, as_denoiser
from pidistill.errors import PidistillError
from pidistill.evaluate import check_features, evaluate
from pidistill.files import write_json
from pidistill.grid import Grid, karras_times
from pidistill.pictures import drawable, write_comparison
from pidistill.plugins import build
from pidistill.progress import console
from pidistill.provenance import commit, versions
from pidistill.samplers import sample_teacher
from pidistill.seeds import labels_of, parse_integers
from pidistill.student import Student, load_student, make_student
from pidistill.teachers import load_teacher
from pidistill.trainer import train


def distill(teacher: Any = "bundled:digits", *, preset: str | Path | None = None, out: str | Path | None = None,
            overrides: dict[str, Any] | None = None, force: bool = False) -> Student:
    """Distil a teacher into a one-step student (Algorithm 1); returns the averaged student.

    teacher: a spec such as `bundled:digits`, a Denoiser, or any callable with a denoiser's attributes.
    preset: a preset's name or a YAML file; `digits` for the bundled teacher, else `default`.
    overrides: configuration keys, such as {"train.steps": 2000}. The run's folder is `out`.
    """
    values = dict(overrides or {})
    spec = teacher if isinstance(teacher, str) else getattr(teacher, "spec", None)
    values["teacher"] = spec or f"object:{type(teacher).__name__}"
    if out is not None:
        values["out"] = str(out)
    config = load_config(DistillConfig, preset or default_preset(values.get("teacher")), values)
    denoiser = load_teacher(config.teacher) if isinstance(teacher, str) else as_denoiser(teacher)
    run(config, denoiser.eval().requires_grad_(False), lambda: runs.claim(config, force))
    return load_student(config.out)


def default_preset(teacher: str | None) -> str:
    return "digits" if teacher == "bundled:digits" else "default"


def run(config: DistillConfig, teacher: Denoiser, claim: Callable[[], Path],
        began: float | None = None) -> dict[str, Any] | None:
    """Train (or continue) in the folder that `claim` gives, save the student, evaluate it.

    Returns results.json's content (main process only). began: time.perf_counter() from which `seconds` is counted.
    """
    began = time.perf_counter() if began is None else began
    torch.manual_seed(config.train.seed)  # initial weights, where they are random
    student = make_student(teacher, config.student.init, config.student.net)
    grid = Grid(karras_times(config.grid.points, teacher.t_min, teacher.t_max, teacher.rho))
    options = dict(config.objective)
    objective = build("objectives", options.pop("name"), student, teacher, grid, **options)
    check_features(config.evaluate.features, teacher.shape)
    preview = Preview(teacher, config.preview.seeds) if drawable(teacher.shape) else None
    if not preview:
        parse_integers(config.preview.seeds, "preview.seeds")
    folder = claim()  # only now: a mistake above must not leave, or replace, a run

    networks, main = train(objective, config, folder, preview)
    if not main:
        return None
    average = networks["student"]
    assert isinstance(average, Student)
    average.save(folder / "student", {"teacher": config.teacher, "seed": config.train.seed, "steps": config.train.steps,
                                      "commit": commit(), "versions": versions()})
    console.print(f"evaluating {config.evaluate.num} images of teacher and student")
    results = evaluate(teacher, average, num=config.evaluate.num, batch=config.evaluate.batch,
                       features=config.evaluate.features)
    if preview:
        preview({"student": average}, folder / "teacher-student.png")
    results |= {"seconds": round(time.perf_counter() - began, 1), "seeds": f"0-{config.evaluate.num - 1}",
                "train_seed": config.train.seed, "steps": config.train.steps, "batch": config.train.batch,
                "threads": torch.get_num_threads(), "commit": commit(), "versions": versions()}
    write_json(folder / "results.json", results)
    return results


class Preview:
    """Teacher and student for the same fixed seeds; the teacher's part is drawn once."""

    def __init__(self, teacher: Denoiser, seeds: str):
        self.teacher, self.seeds = teacher, parse_integers(seeds, "preview.seeds", most=1000)
        self.labels = labels_of(self.seeds, teacher.num_classes)
        self.images: torch.Tensor | None = None

    def __call__(self, networks: dict[str, nn.Module], path: Path) -> None:
        student = networks["student"]
        assert isinstance(student, Student)
        if self.images is None:
            self.images = sample_teacher(self.teacher, self.seeds, self.labels)
        write_comparison(path, self.images, student.sample(self.seeds, self.labels))


def resume(folder: Path, began: float | None = None) -> dict[str, Any] | None:
    """Continue a distillation that was interrupted, from its newest checkpoint."""
    if not (folder / "config.yaml").exists():
        raise PidistillError(f"{folder} holds no run: config.yaml was expected there")
    config = load_config(DistillConfig, folder / "config.yaml")
    return run(config, load_teacher(config.teacher), lambda: folder, began)
