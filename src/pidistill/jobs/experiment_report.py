"""The report of an experiment: a table in which every number stands beside the paper's, raw numbers, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.seeds import labels_of
from pidistill.evaluation.pictures import write_captioned
from pidistill.evaluation.plots import Curve, plot_curves
from pidistill.files.folders import write_json, write_text
from pidistill.files.reading import read_json
from pidistill.jobs.dry_run import count_parameters
from pidistill.jobs.experiments import CURVES, EXPERIMENTS, PAPER_TEACHER, Experiment, Run, Scale
from pidistill.jobs.trajectory import draw_trajectory
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import load_student
from pidistill.training.log import read_metrics


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
