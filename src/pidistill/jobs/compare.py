"""`pidistill compare`: one table of samplers and students of one teacher, in the form of the paper's Tables 1 and 2."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes as parallel
from pidistill.core.errors import PidistillError
from pidistill.core.provenance import provenance
from pidistill.core.registry import choices
from pidistill.core.seeds import labels_of
from pidistill.core.tensors import device_of
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.pictures import drawable, write_captioned
from pidistill.evaluation.plots import plot_comparison
from pidistill.evaluation.published import PUBLISHED
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.tables import UNITS, written
from pidistill.files.folders import write_json
from pidistill.models.denoiser import Denoiser
from pidistill.models.load import load_pair, student_folder
from pidistill.models.samplers.base import Sampler, parse_sampler, sample_teacher
from pidistill.models.student import Student
from pidistill.training.config_file import read_yaml

PICTURED = 12  # images a row


def compare(teacher: Denoiser, students: Sequence[str], samplers: Sequence[str], out: Path, *, features: str | None,
            reference: str | None = None, metrics: Sequence[str] = ("frechet", "inception_score"), num: int = 5000,
            first_seed: int = 0, batch: int | None = None, published: str | None = None,
            teacher_spec: str | None = None, command: str = "") -> list[Path]:
    """Measure the teacher with every sampler, and every student, on the same seeds; write the report's files into `out`.

    students: folders of students or runs. samplers: as `parse_sampler`. published: `cifar10` or `imagenet64` adds the
    paper's rows, marked as such. OUT/compare.md, .csv, .json; compare.png (quality against evaluations);
    compare-samples.png (the same seeds through every method). What is
    measured stays in OUT/measured/, so that an interrupted comparison goes on.
    """
    if published and published not in PUBLISHED:
        raise choices("published table", published, list(PUBLISHED))
    plan = [sampler for text in samplers for sampler in parse_sampler(text)]
    subjects = {f"teacher, {sampler}": Subject.of(teacher, sampler) for sampler in plan}
    distances: dict[str, str] = {}
    loaded: dict[str, Student] = {}
    for folder in students:
        name = unused(folder, loaded)
        loaded[name], _ = load_pair(folder, teacher_spec)
        loaded[name].to(device_of(teacher))
        subjects[name], distances[name] = Subject.of(loaded[name]), distance_of(folder)
    if not subjects:
        raise PidistillError("there is nothing to compare: name --samplers, --students or both")
    measure = Measure(features, reference, teacher.image_shape, device_of(teacher), metrics)
    results = measure_models(subjects, measure, range(first_seed, first_seed + num), num_classes=teacher.num_classes,
                             batch=batch, keep=out / "measured", what="comparing")
    if parallel.rank():
        return []
    rows = [{"method": name, "kind": "student" if name in loaded else "sampler", "distance": distances.get(name), **row}
            for name, row in results.items()]
    record = {"command": command, "teacher": teacher.spec, "num": num, **provenance(num, first_seed, 1), "rows": rows,
              "published": [dict(zip(("method", "distance", "nfe", "fid", "is"), row)) for row in PUBLISHED[published]]
              if published else [], "published_as": published}
    write_json(out / "compare.json", record)
    write_csv(out / "compare.csv", record)
    keys = measured(rows)
    if keys:
        plot_comparison(out / "compare.png", record, keys[0], UNITS[keys[0]])
    pictures = drawable(teacher.image_shape)
    if pictures:
        draw_methods(out / "compare-samples.png", teacher, plan, loaded, first_seed)
    (out / "compare.md").write_text(markdown(record, bool(keys), pictures))
    return [path for path in (out / f"compare{end}" for end in (".md", ".csv", ".json", ".png", "-samples.png"))
            if path.exists()]


def unused(folder: str, taken: dict[str, Student]) -> str:
    """A name for the student in a folder: its own, and as much of the path as tells it from the others."""
    parts = [part for part in Path(folder).parts if part not in ("student", "/", ".")]
    for k in range(1, len(parts) + 1):
        name = "student " + "/".join(parts[-k:])
        if name not in taken:
            return name
    raise PidistillError(f"the student {folder} is named twice")


def distance_of(folder: str) -> str:
    """The distance that a student was trained with, where its run says so."""
    found = student_folder(Path(folder))
    config = found.parent / "config.yaml" if found else Path(folder) / "config.yaml"
    distance = read_yaml(config).get("objective", {}).get("distance", "-") if config.exists() else "-"
    return distance.get("name", "-") if isinstance(distance, dict) else str(distance)


def measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics that the rows have, in the order of `UNITS`."""
    return [key for key in UNITS if any(row.get(key) is not None for row in rows)]


def cells(row: dict[str, Any], keys: Sequence[str]) -> list[str]:
    speed = row.get("images_per_s")
    return [row["method"], row.get("distance") or "", str(row["nfe"]),
            *(written(key, row[key]) if row.get(key) is not None else "-" for key in keys),
            format(speed, ".1f") if speed else "-", format(row["seconds"], ".1f") if "seconds" in row else "-"]


def markdown(record: dict[str, Any], plot: bool, pictures: bool) -> str:
    """The table in the form of Table 1, and the pictures."""
    keys = measured([*record["rows"], *record["published"]])
    at = record["commit"][:12] + "-dirty" * record["commit"].endswith("-dirty")
    head = ["method", "distance", "evaluations", *(UNITS[key] for key in keys), "images/s", "seconds"]
    lines = [f"`{record['command']}`", "",
             f"{record['num']} images, seeds {record['seeds'][0]}, teacher `{record['teacher']}`, "
             f"{record['threads']} threads, commit {at}, torch {record['versions']['torch']}. "
             "Methods took turns batch by batch.", "",
             f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(cells(row, keys))} |" for row in record["rows"]]
    if record["published"]:
        lines.append(f"| *published ({record['published_as']}, numbers of the paper, not measured here)* "
                     + "| " * len(head[1:]) + "|")
        lines += [f"| {' | '.join(cells(row, keys))} |" for row in record["published"]]
    if plot:
        lines += ["", "![quality against evaluations](compare.png)"]
    if pictures:
        lines += ["", "![the same seeds through every method](compare-samples.png)"]
    return "\n".join(lines) + "\n"


def write_csv(path: Path, record: dict[str, Any]) -> None:
    keys = measured([*record["rows"], *record["published"]])
    head = ["method", "distance", "nfe", *keys, "images_per_s", "seconds", "published"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, head, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows([{**row, "published": False} for row in record["rows"]]
                         + [{**row, "published": True} for row in record["published"]])


def draw_methods(path: Path, teacher: Denoiser, plan: Sequence[Sampler], students: dict[str, Student], first: int) -> None:
    """One row a method, the same seed in every column."""
    seeds = list(range(first, first + PICTURED))
    labels = labels_of(seeds, teacher.num_classes)
    rows = [sample_teacher(teacher, seeds, labels, sampler=sampler) for sampler in plan]
    rows += [student.sample(seeds, labels) for student in students.values()]
    names = [str(sampler) for sampler in plan] + list(students)
    write_captioned(path, torch.cat(rows), PICTURED, names, [])
