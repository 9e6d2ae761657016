"""`pidistill compare`: one table of samplers and students of one teacher, in the form of the paper's Tables 1 and 2."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError, to_line
from pidistill.core.provenance import collect_provenance
from pidistill.core.registry import suggest_choices
from pidistill.core.seeds import labels_of
from pidistill.core.tensors import find_device
from pidistill.evaluation.measure import Measure, parse_metric_names
from pidistill.evaluation.pictures import drawable, write_captioned
from pidistill.evaluation.plots import Point, plot_comparison
from pidistill.evaluation.published import PUBLISHED, PublishedResult
from pidistill.evaluation.results import Measurement
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.tables import UNITS, format_metric, order_metrics
from pidistill.files.folders import write_json, write_text
from pidistill.jobs.evaluate_run import pick_features
from pidistill.models.denoiser import Denoiser
from pidistill.models.exported import Exported, names_exported, open_exported
from pidistill.models.load import find_student_folder, load_pair, read_own_net
from pidistill.models.samplers.base import Sampler, is_sampler, parse_sampler, sample_teacher
from pidistill.models.student import Student
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.base import Own
from pidistill.training.config_file import read_yaml

IMAGES_PER_ROW = 12  # of the picture


@dataclass(frozen=True)
class Method:
    """A row of the table: a sampler of the teacher, or a student with the distance that it was trained with."""

    name: str
    measured: Measurement
    sampler: Sampler | None = None
    distance: str | None = None

    def record(self) -> dict[str, Any]:
        """Give the row as a mapping for JSON."""
        return {"method": self.name, "kind": "sampler" if self.sampler else "student", "distance": self.distance,
                **self.measured.record()}

    def cells(self, keys: Sequence[str]) -> list[str]:
        """Give the row's cells as text, with the metrics of these keys."""
        metrics, speed = self.measured.metrics, self.measured.images_per_s
        name = to_line(self.name).replace("|", "\\|")
        return [name, self.distance or "", str(self.measured.nfe), *format_metrics(metrics, keys),
                format(speed, ".1f") if speed else "-", format(self.measured.seconds or 0, ".1f")]


def compare(teacher: str | Denoiser, students: Sequence[str], samplers: Sequence[str], out: Path, *,
            others: Sequence[str] = (), metrics: str | None = None, features: str | None = "auto",
            reference: str | None = None, num: int = 5000, first_seed: int = 0, batch: int | None = None,
            published: str | None = None, device: str = "auto", command: str = "", net: Own | None = None) -> list[Path]:
    """Measure the teacher with every sampler, and every student, on the same seeds; write the report's files into `out`.

    teacher: a spec, or the teacher itself, on its device.
    students: folders of students or runs, or what was exported: an ONNX file, or a folder for diffusers.
    samplers: as `parse_sampler` takes them.
    out: the folder of the report.
    others: students and samplers, mixed.
    metrics: `fid,is,...`; by default the Frechet distance and the Inception Score.
    features, reference: as `load_features` and `load_reference` take them; `auto` and `none` are features too.
    num, first_seed: images of the seeds first_seed ... first_seed + num - 1.
    batch: images at a time; None: what the memory holds.
    published: `cifar10` or `imagenet64` adds the paper's rows, marked as such.
    command: what the user typed, for the record.
    net: of the students that have one of the user's own, as `load_student` takes it; by default the teacher's.

    Gives the files that the main process wrote: OUT/compare.md, .csv, .json; compare.png (quality against evaluations);
    compare-samples.png (the same seeds through every method). What is measured stays in OUT/measured/, so that an
    interrupted comparison goes on.
    """
    processes.join()
    spec = teacher if isinstance(teacher, str) else teacher.spec
    target = processes.choose_device(device) if isinstance(teacher, str) else find_device(teacher)
    network = pick_features(features or "none", spec)
    if metrics and not network:
        raise PidistillError(f"--metrics {metrics} needs a feature network: --features inception, dinov2, or a file")
    names = parse_metric_names(metrics or "frechet,inception_score")
    if "trajectory_rmse" in names:
        raise PidistillError("rms is a metric of evaluate: compare has no one solution to measure from")
    if published and published not in PUBLISHED:
        raise suggest_choices("published table", published, list(PUBLISHED))
    denoiser = load_teacher(teacher).to(target) if isinstance(teacher, str) else teacher
    plan = [sampler for text in (*samplers, *filter(is_sampler, others)) for sampler in parse_sampler(text)]
    subjects = {f"teacher, {sampler}": Subject.of(denoiser, sampler) for sampler in plan}
    sampler_of = {f"teacher, {sampler}": sampler for sampler in plan}
    named = [*students, *(text for text in others if not is_sampler(text))]
    loaded, distances = load_students(named, spec, denoiser, target, net)
    subjects |= {name: Subject.of(student) for name, student in loaded.items()}
    if not subjects:
        raise PidistillError("there is nothing to compare: name --samplers, --students or both")
    measure = Measure(network, reference, denoiser.image_shape, target, names)
    measurements = measure_models(subjects, measure, range(first_seed, first_seed + num), num_classes=denoiser.num_classes,
                                  batch=batch, keep=out / "measured", what="comparing")
    if not processes.is_main():
        return []
    methods = [Method(name, measured, sampler_of.get(name), distances.get(name)) for name, measured in measurements.items()]
    about = {"command": command, "teacher": spec, "num": num, **collect_provenance(num, first_seed, 1)}
    return write_report(out, methods, about, published, denoiser, loaded, first_seed)


def load_students(folders: Sequence[str], spec: str | None, teacher: Denoiser, device: torch.device,
                  net: Own | None) -> tuple[dict[str, Student | Exported], dict[str, str]]:
    """Load students, exported ones too, and give them and their training's distances by the names of their rows.

    folders: of students, runs or exported students.
    spec, teacher: of whom they must be students.
    device: where they go.
    net: of those that have one of the user's own.
    """
    students: dict[str, Student | Exported] = {}
    distances: dict[str, str] = {}
    for folder in folders:
        name = name_student(folder, students)
        if names_exported(folder):
            students[name] = check_exported(open_exported(folder), teacher).to(device)
            continue
        place = find_student_folder(Path(folder))
        own = place is not None and read_own_net(place) is not None
        students[name] = load_pair(folder, spec, net=net if own else None)[0].to(device)
        distances[name] = read_distance(folder)
    return students, distances


def check_exported(student: Exported, teacher: Denoiser) -> Exported:
    """Refuse what draws other images than the teacher, or other classes. Raises PidistillError."""
    if (student.image_shape, student.num_classes) != (teacher.image_shape, teacher.num_classes):
        raise PidistillError(f"the teacher gives {teacher.image_shape} in {teacher.num_classes} classes, {student.source} "
                             f"{student.image_shape} in {student.num_classes}")
    return student


def write_report(out: Path, methods: Sequence[Method], about: dict[str, Any], published: str | None, teacher: Denoiser,
                 students: dict[str, Student | Exported], first_seed: int) -> list[Path]:
    """Write the files of `compare` and give their paths.

    out: the folder.
    methods: the rows of the table.
    about: command, teacher, number and seeds of images, commit.
    published: whose rows of the paper are added, if any.
    teacher, students, first_seed: what the picture is drawn with.
    """
    paper = PUBLISHED[published] if published else []
    write_json(out / "compare.json", about | {"rows": [method.record() for method in methods],
                                              "published": [row.record() for row in paper], "published_as": published})
    write_csv(out / "compare.csv", methods, paper)
    keys = order_metrics(method.measured.metrics for method in methods)
    if keys:
        points = [Point(method.name, method.measured.nfe, method.measured.metrics[keys[0]],
                        str(method.sampler).partition(":")[0] if method.sampler else None) for method in methods]
        plot_comparison(out / "compare.png", points, paper, keys[0], UNITS[keys[0]])
    pictures = drawable(teacher.image_shape)
    if pictures:
        plan = [method.sampler for method in methods if method.sampler]
        draw_methods(out / "compare-samples.png", teacher, plan, students, first_seed)
    write_text(out / "compare.md", format_comparison(methods, about, paper, published, bool(keys), pictures))
    return [path for path in (out / f"compare{end}" for end in (".md", ".csv", ".json", ".png", "-samples.png"))
            if path.exists()]


def name_student(folder: str, taken: Collection[str]) -> str:
    """Name the student in a folder: by its own name, and as much of the path as tells it from those that are taken."""
    components = [component for component in Path(folder).parts if component not in ("student", "/", ".")]
    for k in range(1, len(components) + 1):
        name = "student " + "/".join(components[-k:])
        if name not in taken:
            return name
    raise PidistillError(f"the student {folder} is named twice")


def read_distance(folder: str) -> str:
    """Read which distance a student was trained with, where its run says so; else it is `-`."""
    student = find_student_folder(Path(folder))
    config = student.parent / "config.yaml" if student else Path(folder) / "config.yaml"
    distance = read_yaml(config).get("objective", {}).get("distance", "-") if config.exists() else "-"
    return distance.get("name", "-") if isinstance(distance, dict) else str(distance)


def format_metrics(metrics: dict[str, float], keys: Sequence[str]) -> list[str]:
    """Give the numbers of these keys as text, `-` where a number is missing."""
    return [format_metric(key, metrics[key]) if key in metrics else "-" for key in keys]


def format_comparison(methods: Sequence[Method], about: dict[str, Any], paper: Sequence[PublishedResult],
                      published: str | None, plot: bool, pictures: bool) -> str:
    """Format the report: the table in the form of Table 1, and links to the pictures.

    methods, about, published: as `write_report` takes them.
    paper: the rows of the paper.
    plot, pictures: whether compare.png and compare-samples.png are there.
    """
    keys = order_metrics([*(method.measured.metrics for method in methods), *(row.metrics for row in paper)])
    at = about["commit"][:12] + "-dirty" * about["commit"].endswith("-dirty")
    head = ["method", "distance", "evaluations", *(UNITS[key] for key in keys), "images/s", "seconds"]
    lines = [f"`{about['command']}`", "",
             f"{about['num']} images, seeds {about['seeds'][0]}, teacher `{about['teacher']}`, "
             f"{about['threads']} threads, commit {at}, torch {about['versions']['torch']}. "
             "Methods took turns batch by batch.", "",
             f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(method.cells(keys))} |" for method in methods]
    if paper:
        lines.append(f"| *published ({published}, numbers of the paper, not measured here)* " + "| " * len(head[1:]) + "|")
        lines += [f"| {' | '.join([row.method, row.distance, str(row.nfe), *format_metrics(row.metrics, keys), '-', '-'])} |"
                  for row in paper]
    if plot:
        lines += ["", "![quality against evaluations](compare.png)"]
    if pictures:
        lines += ["", "![the same seeds through every method](compare-samples.png)"]
    return "\n".join(lines) + "\n"


def write_csv(path: Path, methods: Sequence[Method], paper: Sequence[PublishedResult]) -> None:
    """Write the table as CSV, with the paper's rows marked as published."""
    keys = order_metrics([*(method.measured.metrics for method in methods), *(row.metrics for row in paper)])
    head = ["method", "distance", "nfe", *keys, "images_per_s", "seconds", "published"]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, head, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*({**method.record(), "published": False} for method in methods),
                          *({**row.record(), "published": True} for row in paper)])


def draw_methods(path: Path, teacher: Denoiser, plan: Sequence[Sampler], students: dict[str, Student | Exported],
                 first: int) -> None:
    """Draw a row of images for every method, with the same seed in every column.

    path: of the picture.
    teacher, plan: the teacher and its samplers.
    students: by the names of their rows.
    first: the seed of the first column.
    """
    seeds = list(range(first, first + IMAGES_PER_ROW))
    labels = labels_of(seeds, teacher.num_classes)
    rows = [sample_teacher(teacher, seeds, labels, sampler=sampler) for sampler in plan]
    rows += [student.sample(seeds, labels) for student in students.values()]
    names = [str(sampler) for sampler in plan] + list(students)
    write_captioned(path, torch.cat(rows), IMAGES_PER_ROW, names, [])
