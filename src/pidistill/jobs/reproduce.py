"""`pidistill reproduce`: the paper's experiments, at the scale of the bundled digits or at the paper's own."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes
from pidistill.core.console import console
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.registry import suggest_choices
from pidistill.core.seeds import labels_of
from pidistill.evaluation.evaluate import Evaluator
from pidistill.evaluation.pictures import write_captioned
from pidistill.evaluation.plots import Curve, plot_curves
from pidistill.files.folders import write_json, write_text
from pidistill.files.reading import read_json
from pidistill.jobs.distill import Distillation
from pidistill.jobs.dry_run import count_parameters, estimate_gpu_hours, format_duration
from pidistill.jobs.experiments import CURVES, EXPERIMENTS, PAPER_TEACHER, Experiment
from pidistill.jobs.trajectory import draw_trajectory
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import load_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import find_differences, load_config, read_yaml
from pidistill.training.log import read_metrics
from pidistill.training.run_folder import claim, describe_changes


@dataclass(frozen=True)
class Scale:
    """How large an experiment is repeated, and how its runs are measured."""

    preset: str
    metric: str       # key in the records of a run
    unit: str         # the metric's name in tables
    seeds: int        # training seeds of every curve
    paper_steps: bool  # train as long as the paper, instead of as long as the preset says
    settings: tuple[str, ...] = ()  # beside the preset's


SCALES = {
    "bundled": Scale("digits_paper", "fd", "FD %", 2, False),
    "paper": Scale("cifar10", "fid", "FID", 1, True, (
        "evaluate.every=10000", "evaluate.features=inception", "evaluate.reference=cifar10-32x32")),
}


@dataclass(frozen=True)
class Run:
    """One curve with one training seed."""

    curve: str
    seed: int
    config: DistillConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    @property
    def done(self) -> bool:
        """Whether the run is finished: its student is saved."""
        return (self.folder / "student" / "config.json").exists()

    def records(self, metric: str) -> list[tuple[int, float]]:
        """Read (step, value) of every evaluation from the run's metrics."""
        return [(record["step"], record[metric]) for record in read_metrics(self.folder) if metric in record]


def plan_runs(experiment: Experiment, scale: Scale, out: Path, seeds: int | None = None,
         overrides: Sequence[str] = ()) -> list[Run]:
    """Plan the runs of an experiment, those first that other experiments share.

    experiment, scale: what is compared, and how large.
    out: the folder of the results.
    seeds: training seeds of every curve, if not the scale's.
    overrides: `key=value` for all runs.
    """
    runs = []
    for curve in sorted(experiment.paper, key=lambda name: name != "base"):
        for seed in range(seeds or scale.seeds):
            folder = out / "curves" / f"{curve}-seed{seed}"
            steps = [f"train.steps={CURVES[curve].paper_steps}"] if scale.paper_steps else []
            values = {**CURVES[curve].overrides, "train.seed": seed, "out": str(folder)}
            runs.append(Run(curve, seed, load_config(DistillConfig, scale.preset,
                                                     [*scale.settings, *steps, *overrides, *values.items()])))
    return runs


def train_curve(run: Run, teacher: Denoiser, evaluator: Callable[[], Evaluator]) -> None:
    """Train a curve, or continue it; a finished one is left alone. Other settings in its folder are refused.

    run: the curve with its training seed.
    teacher: of the runs.
    evaluator: gives what measures the student; it is called only if there is something to train.
    """
    if not run.done:
        console.print(f"{CURVES[run.curve].label}, seed {run.seed}: {run.folder}", soft_wrap=True)
        measure, job = evaluator(), Distillation(run.config, teacher)
        with claim(run.config, resume=True) as folder:
            job.train(folder, measure)
    elif changed := find_differences(read_yaml(run.folder / "config.yaml"), run.config):
        raise describe_changes(run.folder, changed)


def reproduce(name: str, scale_name: str, out: Path, *, seeds: int | None = None,
              overrides: Sequence[str] = ()) -> list[Path]:
    """Train what is missing of an experiment and write its report; returns the files written.

    name: of the experiment, as in `EXPERIMENTS`.
    scale_name: `bundled` or `paper`.
    out, seeds, overrides: as `plan_runs` takes them.

    OUT/curves/CURVE-seedK/ are ordinary runs that experiments share and that continue where they stopped.
    OUT/NAME.md, NAME.json and NAME.png (a plot or a picture) are the report.
    """
    experiment, scale = find_experiment(name, scale_name)
    runs = plan_runs(experiment, scale, out, seeds, overrides)
    teacher = load_teacher(runs[0].config.teacher)
    options = runs[0].config.evaluate

    @functools.cache
    def make_evaluator() -> Evaluator:  # when the first run needs it: the teacher's images take a while
        return Evaluator(teacher, num=options.num, batch=options.batch, features=options.features,
                         reference=options.reference, cache=out / "teacher-images.safetensors")

    for run in runs:
        train_curve(run, teacher, make_evaluator)
    if not processes.is_main():
        return []
    command = shlex.join(["pidistill", "reproduce", name, "--scale", scale_name, *(["--seeds", str(seeds)] if seeds else []),
                          *(word for text in overrides for word in ("--set", text))])
    return write_experiment(name, command, scale, runs, teacher, make_evaluator().teacher, out)


def estimate_cost(names: Sequence[str], scale_name: str, out: Path, seeds: int | None = None,
         overrides: Sequence[str] = ()) -> list[str]:
    """Estimate what experiments cost; gives lines on what they will train, and which of it is there.

    names: of the experiments.
    scale_name, out, seeds, overrides: as `reproduce` takes them.
    """
    runs: dict[Path, Run] = {}
    for name in names:
        experiment, scale = find_experiment(name, scale_name)
        runs |= {run.folder: run for run in plan_runs(experiment, scale, out, seeds, overrides)}
    missing = [run for run in runs.values() if not run.done]
    lines = [f"{'to do' if run in missing else 'done':<6} {run.config.train.steps:>7} steps of {run.config.train.batch:<5} "
             f"seed {run.seed}  {CURVES[run.curve].label}" for run in runs.values()]
    steps = sum(run.config.train.steps for run in missing)
    lines.append(f"{len(missing)} of {len(runs)} runs to train, {steps:,} steps; results in {out}")
    if missing and SCALES[scale_name].paper_steps:
        hours = sum(estimate_gpu_hours(run.config) for run in missing)
        lines.append(f"about {hours:,.0f} hours of one A100, or {format_duration(hours * 3600 / 8)} on 8 GPUs, without the "
                     f"evaluations (accelerate launch --multi_gpu --num_processes 8 -m pidistill.cli reproduce ...); "
                     f"{torch.cuda.device_count()} GPUs are here")
    return lines


def find_experiment(name: str, scale_name: str) -> tuple[Experiment, Scale]:
    """Find an experiment and a scale by their names. Raises PidistillError for unknown ones."""
    if name not in EXPERIMENTS:
        raise suggest_choices("experiment", name, list(EXPERIMENTS))
    if scale_name not in SCALES:
        raise suggest_choices("scale", scale_name, list(SCALES))
    return EXPERIMENTS[name], SCALES[scale_name]


def write_experiment(name: str, command: str, scale: Scale, runs: list[Run], teacher: Denoiser,
                     teacher_numbers: dict[str, float], out: Path) -> list[Path]:
    """Write the report of an experiment and give its paths: NAME.md, NAME.json (raw numbers) and NAME.png.

    name, scale: of the experiment.
    command: that repeats it.
    runs: all finished.
    teacher, teacher_numbers: the teacher of the runs, and what was measured of it.
    out: the folder.
    """
    experiment = EXPERIMENTS[name]
    runs_of = {curve: [run for run in runs if run.curve == curve] for curve in experiment.paper}
    curves = {curve: gather_curve(curve, runs_of[curve], experiment.paper[curve], scale) for curve in runs_of}
    record = {
        "experiment": name, "title": experiment.title, "paper": experiment.section, "preset": scale.preset,
        "command": command, "teacher": teacher_numbers,
        "curves": {name: curve.record() for name, curve in curves.items()},
        "commit": find_commit(), "versions": list_versions(), "threads": torch.get_num_threads()}
    write_json(out / f"{name}.json", record)
    picture = out / f"{name}.png"
    if experiment.kind == "trajectories":
        seeds = list(range(4))
        draw_trajectory(picture, load_student(runs[0].folder), teacher, seeds, labels_of(seeds, teacher.num_classes))
    elif experiment.kind == "curves":
        plot_curves(picture, list(curves.values()), scale.metric, scale.unit)
    if experiment.kind != "trajectories":
        grid = picture if experiment.kind == "samples" else out / f"{name}-samples.png"
        draw_samples(grid, runs_of, teacher)
    write_text(out / f"{name}.md", format_report(name, experiment, scale, record))
    return [out / f"{name}{end}" for end in (".md", ".json", ".png") if (out / f"{name}{end}").exists()]


def gather_curve(name: str, runs: Sequence[Run], paper: str, scale: Scale) -> Curve:
    """Gather a curve's runs as they are plotted and recorded.

    name, runs: of the curve.
    paper: what the paper reports of it.
    scale: which says how it is measured.
    """
    lines: list[dict[str, Any]] = []
    for run in runs:
        evaluations = {key: run.records(key) for key in (scale.metric, "trajectory_rmse")}
        lines.append({"seed": run.seed, "steps": run.config.train.steps, "batch": run.config.train.batch,
                      "commit": read_json(run.folder / "student" / "provenance.json")["commit"],
                      "parameters": count_parameters(load_student(run.folder)),
                      "seconds": read_metrics(run.folder)[-1]["seconds"],
                      **{key: values for key, values in evaluations.items() if values}})
    return Curve(CURVES[name].label, lines, {"overrides": CURVES[name].overrides, "paper": paper})


def draw_samples(path: Path, curves: dict[str, list[Run]], teacher: Denoiser, columns: int = 16) -> None:
    """Draw a row of images for the teacher and one for each curve (its first seed), the same noise in every column.

    path: of the picture.
    curves: the runs of each curve by its name.
    columns: images a row.
    """
    seeds = list(range(columns))
    labels = labels_of(seeds, teacher.num_classes)
    rows = [sample_teacher(teacher, seeds, labels)]
    rows += [load_student(runs[0].folder).sample(seeds, labels) for runs in curves.values()]
    write_captioned(path, torch.cat(rows), columns, ["teacher", *curves], [])


def format_report(name: str, experiment: Experiment, scale: Scale, record: dict[str, Any]) -> str:
    """Format the report: every number beside the paper's.

    name, experiment, scale: what was repeated.
    record: the raw numbers, as they stand in NAME.json.
    """
    trained = sorted({run["commit"][:12] for curve in record["curves"].values() for run in curve["runs"]})
    lines = [f"## {experiment.title} ({experiment.section})", "",
             f"`{record['command']}`, preset `{record['preset']}`, trained at commit {', '.join(trained)}, torch "
             f"{record['versions']['torch']}. The paper: {experiment.finding}.", "",
             f"| run | parameters | steps | paper, FID | {scale.unit}, each seed | mean | r.m.s. to teacher | s |",
             "|---|---|---|---|---|---|---|---|"]
    if scale.metric in record["teacher"]:
        lines.append(f"| teacher | | | {PAPER_TEACHER} | {record['teacher'][scale.metric]:.2f} | | 0 | |")
    for curve in record["curves"].values():
        lines.append(format_curve(curve, scale.metric))
    if experiment.kind != "table":
        lines += ["", f"![{experiment.title}]({name}.png)"]
    if experiment.kind in ("table", "curves"):
        lines += ["", f"![samples of the same noise]({name}-samples.png)"]
    return "\n".join(lines) + "\n"


def format_curve(curve: dict[str, Any], metric: str) -> str:
    """Format a curve's line of the table: last values, by training seed."""
    runs = curve["runs"]

    def mean(values: list[float], form: str) -> str:
        return format(sum(values) / len(values), form) if values else "-"

    def last(key: str) -> list[float]:
        return [run[key][-1][1] for run in runs if run.get(key)]

    cells = [curve["label"], f"{runs[0]['parameters']:,}", runs[0]["steps"], curve["paper"],
             ", ".join(format(value, ".2f") for value in last(metric)) or "-", mean(last(metric), ".2f"),
             mean(last("trajectory_rmse"), ".3f"), mean([run["seconds"] for run in runs], ".0f")]
    return f"| {' | '.join(map(str, cells))} |"
