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
from pidistill.jobs.method_costs import format_methods, list_places
from pidistill.jobs.trajectory import draw_trajectory
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import load_student
from pidistill.training.log import read_metrics

COLUMNS = {"precision": ".3f", "recall": ".3f", "spread": ".3f"}  # those of the table that are there if they were measured


def write_experiment(name: str, command: str, scale: Scale, runs: list[Run], measured: dict[str, dict[str, float]],
                     teacher: Denoiser, out: Path, costs: dict[str, dict[str, Any]] | None = None) -> list[Path]:
    """Write the report of an experiment and give its paths: NAME.md, NAME.json (raw numbers) and NAME.png.

    name, scale: of the experiment.
    command: that repeats it.
    runs: all finished.
    measured: the numbers of the teacher (`teacher`), and those of finished students by their runs' names, where they have
        been measured once more.
    teacher: of the runs.
    out: the folder.
    costs: of methods, by their runs' names, as `measure_costs` gives them.
    """
    experiment = EXPERIMENTS[name]
    runs_of = {curve: [run for run in runs if run.curve == curve] for curve in experiment.paper}
    curves = {curve: gather_curve(curve, runs_of[curve], experiment.paper[curve], scale, measured) for curve in runs_of}
    for curve, found in curves.items():
        for run, line in zip(runs_of[curve], found.runs, strict=True):
            line |= {"costs": costs[run.folder.name]} if costs else {}
    record = {
        "experiment": name, "title": experiment.title, "paper": experiment.source, "preset": scale.preset,
        "command": command, "teacher": measured["teacher"],
        "curves": {name: curve.record() for name, curve in curves.items()},
        "commit": find_commit(), "versions": list_versions(), "threads": torch.get_num_threads()}
    write_json(out / f"{name}.json", record)
    picture = out / f"{name}.png"
    if experiment.kind == "trajectories":
        seeds = list(range(4))
        draw_trajectory(picture, load_student(runs[0].folder), teacher, seeds, labels_of(seeds, teacher.num_classes))
    elif experiment.kind == "curves":
        plot_curves(picture, [place_curve(curve, scale.metric) for curve in curves.values()], scale.metric, scale.unit)
    if experiment.kind != "trajectories":
        grid = picture if experiment.kind == "samples" else out / f"{name}-samples.png"
        draw_samples(grid, runs_of, teacher)
    write_text(out / f"{name}.md", format_report(name, experiment, scale, record))
    return [out / f"{name}{end}" for end in (".md", ".json", ".png") if (out / f"{name}{end}").exists()]


def gather_curve(name: str, runs: Sequence[Run], paper: str, scale: Scale, measured: dict[str, dict[str, float]]) -> Curve:
    """Gather a curve's runs as they are plotted and recorded.

    name, runs: of the curve.
    paper: what the paper reports of it.
    scale: which says how it is measured.
    measured: as `write_experiment` takes it.
    """
    lines: list[dict[str, Any]] = []
    for run in runs:
        evaluations = {key: run.records(key) for key in (scale.metric, "trajectory_rmse", "spread")}
        provenance = read_json(run.folder / "student" / "provenance.json")
        step = provenance.get("steps", run.config.train.steps)  # which is not the last one if the best student was kept
        numbers = {key: dict(values)[step] for key, values in evaluations.items() if step in dict(values)}
        lines.append({"seed": run.seed, "steps": run.config.train.steps, "batch": run.config.train.batch,
                      "commit": provenance["commit"], "parameters": count_parameters(load_student(run.folder)),
                      "seconds": read_seconds(run),
                      **({"start": {"curve": run.start.curve, "steps": run.start.config.train.steps,
                                    "seconds": read_seconds(run.start)}} if run.start else {}),
                      "student": {"step": step, **numbers, **measured.get(run.folder.name, {})},
                      **{key: values for key, values in evaluations.items() if values}})
    return Curve(CURVES[name].label, lines, {"overrides": CURVES[name].overrides, "paper": paper})


def read_seconds(run: Run) -> float:
    """Read the seconds of a run, with its evaluations, all stages together."""
    return sum(read_metrics(place)[-1]["seconds"] for place in list_places(run))


def place_curve(curve: Curve, metric: str) -> Curve:
    """Place a curve in the plot: its iterations follow those of the run that it starts from."""
    return Curve(curve.label, [
        {metric: [(run.get("start", {"steps": 0})["steps"] + step, value) for step, value in run.get(metric, [])]}
        for run in curve.runs])


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
    curves = record["curves"].values()
    trained = sorted({run["commit"][:12] for curve in curves for run in curve["runs"]})
    methods = experiment.kind == "methods"
    head, *rows = format_methods(experiment, scale, record) if methods else format_curves(experiment, scale, record)
    presets = "the preset of each method" if methods else f"preset `{record['preset']}`"
    lines = [f"## {experiment.title} ({experiment.source})", "",
             f"`{record['command']}`, {presets}, trained at commit {', '.join(trained)}, torch "
             f"{record['versions']['torch']}. Found there: {experiment.finding}.", "",
             *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))]
    if any("start" in run for curve in curves for run in curve["runs"]):
        lines += ["", "Steps, and seconds with evaluations: of the run that a student starts from, and of its own."]
    if experiment.kind not in ("table", "methods"):
        lines += ["", f"![{experiment.title}]({name}.png)"]
    if experiment.kind in ("table", "curves", "methods"):
        lines += ["", f"![samples of the same noise]({name}-samples.png)"]
    return "\n".join(lines) + "\n"


def format_curves(experiment: Experiment, scale: Scale, record: dict[str, Any]) -> list[list[str]]:
    """Format the table of curves, a row each; the head is the first. Parameters: `format_report`."""
    curves, teacher = record["curves"].values(), record["teacher"]
    more = [key for key in COLUMNS if any(key in run["student"] for curve in curves for run in curve["runs"])]
    reported = any(experiment.paper.values())
    head = ["run", "parameters", "steps", *(["paper, FID"] if reported else []), f"{scale.unit}, each seed", "mean",
            "r.m.s. to teacher", *more, "s"]
    rows = [head]
    if scale.metric in teacher:
        rows.append(["teacher", "", "", *([PAPER_TEACHER] if reported else []), f"{teacher[scale.metric]:.2f}", "", "0",
                     *(format_mean([teacher[key]] if key in teacher else [], COLUMNS[key]) for key in more), ""])
    return [*rows, *(format_curve(curve, scale.metric, more, reported) for curve in curves)]


def format_curve(curve: dict[str, Any], metric: str, more: Sequence[str], reported: bool) -> list[str]:
    """Format a curve's line of the table, cell by cell: the numbers of its students, by training seed.

    metric: whose numbers of all seeds are shown.
    more: the keys of the last columns.
    reported: whether there is a column of the paper's numbers.
    """
    runs, start = curve["runs"], [run["start"] for run in curve["runs"] if "start" in run]

    def list_numbers(key: str) -> list[float]:
        return [run["student"][key] for run in runs if key in run["student"]]

    seconds = format_mean([run["seconds"] for run in runs], ".0f")
    return [curve["label"], f"{runs[0]['parameters']:,}",
            f"{start[0]['steps']} + {runs[0]['steps']}" if start else str(runs[0]["steps"]),
            *([curve["paper"]] if reported else []),
            ", ".join(format(value, ".2f") for value in list_numbers(metric)) or "-",
            format_mean(list_numbers(metric), ".2f"), format_mean(list_numbers("trajectory_rmse"), ".3f"),
            *(format_mean(list_numbers(key), COLUMNS[key]) for key in more),
            f"{format_mean([run['seconds'] for run in start], '.0f')} + {seconds}" if start else seconds]


def format_mean(values: Sequence[float], form: str) -> str:
    """Format the mean of values, or a dash where there are none."""
    return format(sum(values) / len(values), form) if values else "-"
