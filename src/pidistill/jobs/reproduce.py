"""`pidistill reproduce`: the experiments, at the scale of the bundled digits or at the paper's own."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes
from pidistill.core.console import console
from pidistill.evaluation.evaluate import Evaluator
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.jobs.distill import plan_distillation, train_all
from pidistill.jobs.dry_run import estimate_gpu_hours, format_duration
from pidistill.jobs.experiment_report import write_experiment
from pidistill.jobs.experiments import CURVES, Run, find_experiment, plan_runs
from pidistill.jobs.method_costs import measure_all_costs
from pidistill.jobs.stages import list_stages, start_anew
from pidistill.models.denoiser import Denoiser
from pidistill.models.student import load_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config_file import find_differences, read_yaml
from pidistill.training.run_folder import claim, describe_changes
from pidistill.training.trainer import exhaust


def train_curve(run: Run, teacher: Denoiser, evaluator: Callable[[], Evaluator]) -> None:
    """Train a curve, or continue it; a finished one is left alone. Other settings in its folder are refused.

    run: the curve with its training seed.
    teacher: of the runs.
    evaluator: gives what measures the student; it is called only if there is something to train.
    """
    given = ["student.init"] if run.start else []  # which names another place once the results have been moved
    if not run.done:
        console.print(f"{CURVES[run.curve].label}, seed {run.seed}: {run.folder}", soft_wrap=True)
        measure = evaluator()
        stages, job = plan_distillation(run.config, teacher)
        with claim(run.config, resume=True, given=given) as folder:
            exhaust(train_all(stages, job, folder, measure))
    elif changed := [key for key in find_differences(read_yaml(run.folder / "config.yaml"), run.config) if key not in given]:
        raise describe_changes(run.folder, changed)


def measure_student(run: Run, measure: Measure) -> dict[str, float]:
    """Measure the student of a finished run on its evaluations' seeds; the numbers stay in RUN/evaluation.

    All processes must call it.
    """
    student, plan = load_student(run.folder).to(measure.device), run.config.evaluate
    return measure_models({"student": Subject.of(student)}, measure, range(plan.num), num_classes=student.num_classes,
                          batch=plan.batch, keep=run.folder / "evaluation", what=run.folder.name)["student"].metrics


def reproduce(name: str, scale_name: str, out: Path, *, seeds: int | None = None, overrides: Sequence[str] = (),
              only: Sequence[str] = ()) -> list[Path]:
    """Train what is missing of an experiment and write its report; returns the files written.

    name: of the experiment, as in `EXPERIMENTS`.
    scale_name: `bundled` or `paper`.
    out, seeds, overrides, only: as `plan_runs` takes them; with `only` there is no report.

    OUT/curves/CURVE-seedK/ are ordinary runs that experiments share and that continue where they stopped.
    OUT/NAME.md, NAME.json and NAME.png (a plot or a picture) are the report.
    """
    experiment, scale = find_experiment(name, scale_name)
    runs = plan_runs(experiment, scale, out, seeds, overrides, only)
    teacher = load_teacher(runs[0].config.teacher)
    options = runs[0].config.evaluate

    @functools.cache
    def make_evaluator() -> Evaluator:  # when the first run needs it: the teacher's images take a while
        return Evaluator(teacher, num=options.num, batch=options.batch, features=options.features,
                         reference=options.reference, cache=out / "teacher-images.safetensors")

    measure, measured = None, dict[str, dict[str, Any]]()
    if scale.metrics:  # before the first run: what it cannot measure it says now
        measure = Measure(options.features, options.reference, teacher.image_shape, processes.choose_device(),
                          ("frechet", *scale.metrics))
    for run in runs:
        train_curve(run, teacher, make_evaluator)
    if measure:
        processes.join()
        measured = {run.folder.name: dict(measure_student(run, measure)) for run in runs}
    if only or not processes.is_main():
        return []
    evaluator, costs = make_evaluator(), dict[str, dict[str, Any]]()
    if experiment.kind == "methods":
        for run in runs:
            measured.setdefault(run.folder.name, {}).update(evaluator(load_student(run.folder)))
        costs = measure_all_costs(runs, teacher)
    measured["teacher"] = measure(evaluator.solutions) if measure else evaluator.teacher
    command = shlex.join(["pidistill", "reproduce", name, "--scale", scale_name, *(["--seeds", str(seeds)] if seeds else []),
                          *(word for text in overrides for word in ("--set", text))])
    return write_experiment(name, command, scale, runs, measured, teacher, out, costs)


def estimate_cost(names: Sequence[str], scale_name: str, out: Path, seeds: int | None = None,
                  overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[str]:
    """Estimate what experiments cost; gives lines on what they will train, and which of it is there.

    names: of the experiments.
    scale_name, out, seeds, overrides, only: as `reproduce` takes them.
    """
    runs: dict[Path, Run] = {}
    for name in names:
        experiment, scale = find_experiment(name, scale_name)
        runs |= {run.folder: run for run in plan_runs(experiment, scale, out, seeds, overrides, only)}
    missing = [run for run in runs.values() if not run.done]
    counts = {run.folder: sum(stage.train.steps for stage in list_stages(run.config).values()) for run in runs.values()}
    lines = [f"{'to do' if run in missing else 'done':<6} {counts[run.folder]:>7} steps of {run.config.train.batch:<5} "
             f"seed {run.seed}  {CURVES[run.curve].label}" for run in runs.values()]
    steps = sum(counts[run.folder] for run in missing)
    lines.append(f"{len(missing)} of {len(runs)} runs to train, {steps:,} steps; results in {out}")
    if missing and scale_name == "paper":
        # A student that is not there yet has the network of the run that will leave it.
        starts = [run.config.model_copy(update={"student": (run.start or run).config.student}) for run in missing]
        hours = sum(estimate_gpu_hours(stage) for start in starts for stage in start_anew(list_stages(start)).values())
        lines.append(f"about {hours:,.0f} hours of one A100, or {format_duration(hours * 3600 / 8)} on 8 GPUs, without the "
                     f"evaluations (accelerate launch --multi_gpu --num_processes 8 -m pidistill.cli reproduce ...); "
                     f"{torch.cuda.device_count()} GPUs are here")
    return lines
