"""What a method costs beside its numbers: what it needs, seconds, and memory, as the columns of table 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pidistill.files.reading import read_json
from pidistill.jobs.build_objective import build_objective
from pidistill.jobs.dry_run import format_bytes
from pidistill.jobs.experiments import CURVES, Experiment, Run, Scale
from pidistill.jobs.stages import list_stages, start_anew
from pidistill.models.denoiser import Denoiser
from pidistill.objectives.base import find_objective
from pidistill.training.config import DistillConfig
from pidistill.training.footprint import Rehearsal
from pidistill.training.log import read_metrics

NEEDS = {"noise": "nothing", "images": "data", "pairs": "pairs", "trajectories": "trajectories"}


def measure_all_costs(runs: Sequence[Run], teacher: Denoiser) -> dict[str, dict[str, Any]]:
    """Measure what finished runs took, by their folders' names. Memory is counted once for the seeds of a curve."""
    counted = {run.curve: max(count_memory(stage, teacher) for stage in start_anew(list_stages(run.config)).values())
               for run in {run.curve: run for run in runs}.values()}
    return {run.folder.name: measure_costs(run, counted[run.curve]) for run in runs}


def measure_costs(run: Run, memory: int) -> dict[str, Any]:
    """Measure what a finished run took, all stages together.

    Gives `needs`, in words; `steps` of each stage; `seconds` of training and `pairs_seconds` of drawing pairs; of the last
    stage `ten_steps`, the seconds of ten steps (the median of its log); and `memory`, bytes of the tensors of a step at the
    fullest moment of all stages, counted and not measured (`Rehearsal`).

    memory: as `count_memory` gives it.
    """
    configs, places = [*list_stages(run.config).values()], list_places(run)
    records = [read_metrics(place) for place in places]
    speeds = [record["images_per_s"] for record in records[-1] if record.get("images_per_s")]
    pairs = [read_json(place / "pairs" / "pairs.json")["seconds"] for place in places if (place / "pairs").is_dir()]
    return {"needs": describe_needs(configs), "steps": [config.train.steps for config in configs],
            "seconds": sum(lines[-1]["seconds"] for lines in records), "pairs_seconds": sum(pairs),
            "ten_steps": 10 * configs[-1].train.batch / median(speeds) if speeds else None,
            "memory": memory}


def list_places(run: Run) -> list[Path]:
    """List the folders of a run's stages; of a single one, the run's own."""
    stages = list_stages(run.config)
    return [run.folder / name if len(stages) > 1 else run.folder for name in stages]


def describe_needs(configs: list[DistillConfig]) -> str:
    """Describe what the objectives of a run's stages need beside noise and the teacher's answers."""
    members = [find_objective(config.objective["name"]) for config in configs]
    needs = {NEEDS[member.needs] if config.data != "teacher" or member.needs != "images" else "the teacher's samples"
             for config, member in zip(configs, members, strict=True)} - {"nothing"}
    gradient = any(member.asks_for_gradient(config.objective) for config, member in zip(configs, members, strict=True))
    return ", ".join([*sorted(needs), *(["the teacher's gradient"] if gradient else [])]) or "nothing"


def count_memory(config: DistillConfig, teacher: Denoiser) -> int:
    """Count the bytes of a step's tensors at its fullest moment, on the CPU."""
    batch, micro = config.train.batch, config.train.microbatch
    micro = micro if isinstance(micro, int) else batch
    return sum(Rehearsal(build_objective(config, teacher), config, gpu=False)(min(micro, batch), micro < batch).values())


def format_methods(experiment: Experiment, scale: Scale, record: dict[str, Any]) -> list[list[str]]:
    """Format the table of methods, a row each; the head is the first.

    record: the raw numbers, as they stand in NAME.json.
    """
    rows = [["method", "needs", "paper, FID", f"{scale.unit}, each seed", "mean", "recall", "r.m.s. to teacher",
             "s for 10 steps", "memory of a step", "steps", "s, pairs + training"]]
    teacher = record["teacher"]
    rows.append(["teacher, 35 evaluations", "data", "2.04", f"{teacher[scale.metric]:.2f}", "",
                 f"{teacher['recall']:.3f}" if "recall" in teacher else "-", "0", "", "", "", ""])
    for name, curve in record["curves"].items():
        runs = curve["runs"]

        def mean(key: str, form: str, runs: list[dict[str, Any]] = runs, part: str = "student") -> str:
            values = [run[part][key] for run in runs if run[part].get(key) is not None]
            return format(sum(values) / len(values), form) if values else "-"

        costs, values = runs[0]["costs"], [run["student"][scale.metric] for run in runs]
        pairs = f"{mean('pairs_seconds', '.0f', part='costs')} + " if costs["pairs_seconds"] else ""
        rows.append([CURVES[name].label, costs["needs"], experiment.paper[name] or "-",
                     ", ".join(f"{value:.2f}" for value in values), f"{sum(values) / len(values):.2f}",
                     mean("recall", ".3f"), mean("trajectory_rmse", ".3f"), mean("ten_steps", ".2f", part="costs"),
                     format_bytes(costs["memory"]), " + ".join(map(str, costs["steps"])),
                     pairs + mean("seconds", ".0f", part="costs")])
    return rows
