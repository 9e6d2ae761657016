"""`pidistill evaluate`: what the student loses and gains against its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser, device_of
from pidistill.errors import PidistillError
from pidistill.features import Inception, check_shape, load_features, load_reference
from pidistill.files import read_tensors, write_tensors
from pidistill.metrics.frechet import frechet, relative_frechet, statistics
from pidistill.metrics.trajectory_rmse import trajectory_rmse
from pidistill.models import teacher_spec_of
from pidistill.progress import track
from pidistill.samplers import STEPS, sample_teacher
from pidistill.seeds import labels_of
from pidistill.student import Student
from pidistill.tensors import dequantise, quantise


class Meter:
    """A model's images over all batches, its time, and how often its network was called."""

    def __init__(self, network: torch.nn.Module, draw: Callable[[Sequence[int], Tensor | None], Tensor]):
        self.draw, self.images, self.seconds, self.calls, self.batches = draw, list[Tensor](), 0.0, 0, 0
        self.hook = network.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def run(self, seeds: Sequence[int], labels: Tensor | None) -> None:
        began = time.perf_counter()
        self.images.append(self.draw(seeds, labels))  # ends on the CPU, so the device has finished
        self.seconds += time.perf_counter() - began
        self.batches += 1

    def result(self) -> dict[str, Any]:
        self.hook.remove()
        return {"nfe": self.calls // self.batches, "images_per_s": sum(map(len, self.images)) / self.seconds}


def evaluate(teacher: Denoiser | None, students: Student | dict[str, Student] | None, *, num: int = 5000, batch: int = 250,
             first_seed: int = 0, features: str | None = None, reference: str | None = None,
             steps: int = STEPS) -> dict[str, Any]:
    """Evaluate on seeds first_seed ... first_seed + num - 1, labels from the seeds; teacher, students by name, or both.

    Gives nfe and images_per_s of each, `fd` or `fid` where a feature network is named (see `Frechet`), and each student's
    `trajectory_rmse` where the teacher is there too. All take turns batch by batch, so that a noisy machine slows them
    alike.
    """
    named = {"student": students} if isinstance(students, Student) else students or {}
    models: list[Any] = [model for model in (teacher, *named.values()) if model is not None]
    measure = Frechet.of(features, reference, models[0].image_shape, device_of(models[0]))
    meters: dict[str, Meter] = {}
    if teacher is not None:
        meters["teacher"] = Meter(teacher, lambda seeds, y: sample_teacher(teacher, seeds, y, steps=steps, batch_size=batch))
    for name, student in named.items():
        draw = lambda seeds, y, student=student: student.sample(seeds, y, batch_size=batch, clip=False)
        meters[name] = Meter(student.net, draw)
    for k in track(range(0, num, batch), "evaluating"):
        seeds = range(first_seed + k, first_seed + min(k + batch, num))
        labels = labels_of(seeds, models[0].num_classes)
        for meter in meters.values():
            meter.run(seeds, labels)
    results: dict[str, Any] = {}
    images = {name: torch.cat(meter.images) for name, meter in meters.items()}
    for name, meter in meters.items():
        results[name] = meter.result()
        results[name] |= measure(images[name]) if measure else {}
    for name in named if teacher is not None else ():
        results[name]["trajectory_rmse"] = trajectory_rmse(images[name], images["teacher"])
    if "teacher" in images and "student" in images:
        results["speedup"] = results["student"]["images_per_s"] / results["teacher"]["images_per_s"]
    return results


class Evaluator:
    """The same measurement of many students of one teacher: the teacher's images and their FD are computed once.

    cache: a file that keeps the images between programs. Seeds 0 to num - 1, as `evaluate`.
    """

    def __init__(self, teacher: Denoiser, *, num: int = 5000, batch: int = 250, features: str | None = None,
                 reference: str | None = None, cache: Path | None = None):
        self.frechet = Frechet.of(features, reference, teacher.image_shape, device_of(teacher))
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
        self.teacher = self.frechet(self.solutions) if self.frechet else {}

    def __call__(self, student: Student) -> dict[str, float]:
        """`trajectory_rmse`, and `fd` or `fid` where a feature network is named."""
        images = student.sample(self.seeds, self.labels, batch_size=self.batch, clip=False)
        measured = {"trajectory_rmse": trajectory_rmse(images, self.solutions)}
        return measured | (self.frechet(images) if self.frechet else {})

    def each(self, students: dict[float, Student]) -> dict[str, float]:
        """The first student's numbers, and those of the others as `KEY@RATE`: for the log of a run."""
        first, *_ = students
        return {key if rate == first else f"{key}@{rate}": value for rate, student in students.items()
                for key, value in self(student).items()}


class Frechet:
    """Images (N, C, H, W) -> their Frechet distance to the data, by name.

    `fid` for Inception's features; else `fd`, in per cent of the reference's variance. reference: see `load_reference`.
    """

    def __init__(self, features: str, reference: str | None, shape: Sequence[int], device: torch.device | str = "cpu"):
        self.net = load_features(features).to(device)
        check_shape(self.net, shape, features)
        self.reference = load_reference(features, reference)
        self.name = "fid" if isinstance(self.net, Inception) else "fd"

    @classmethod
    def of(cls, features: str | None, reference: str | None, shape: Sequence[int],
           device: torch.device | str = "cpu") -> Frechet | None:
        """None where no feature network is named."""
        return cls(features, reference, shape, device) if features else None

    def __call__(self, images: Tensor) -> dict[str, float]:
        features = image_features(self.net, images)
        if features.shape[1] != len(self.reference[0]):
            raise PidistillError(f"the reference is of {len(self.reference[0])} features, the network gives "
                                 f"{features.shape[1]}: it is that of another network")
        distance = frechet if self.name == "fid" else relative_frechet
        return {self.name: distance(statistics(features), self.reference)}


@torch.inference_mode()
def image_features(net: Any, images: Tensor, batch: int = 500) -> Tensor:
    """Features (N, d) of images (N, C, H, W) in [-1, 1], quantised to uint8 first, as files would be."""
    bad = ~images.flatten(1).isfinite().all(dim=1)
    if bad.any():
        raise PidistillError(f"{int(bad.sum())} images are not finite; the first is number {int(bad.nonzero()[0])}")
    device = device_of(net)
    return torch.cat([net.features(dequantise(quantise(part.to(device)))).cpu() for part in images.split(batch)])


def pick_features(name: str, *specs: str | None) -> str | None:
    """The feature network for FD: `none`, a name, or `auto`, which is `digits` for the bundled digits and their students."""
    if name == "auto":
        return "digits" if any(spec and "bundled:digits" in (spec, teacher_spec_of(spec)) for spec in specs) else None
    return None if name == "none" else name


def table(results: dict[str, Any]) -> list[list[str]]:
    """Rows for people: a head, then one row a model."""
    distance = "fid" if any(isinstance(row, dict) and "fid" in row for row in results.values()) else "fd"
    rows = [["", "evaluations", "FID" if distance == "fid" else "FD %", "rms to teacher", "images/s"]]
    for name, row in results.items():
        if isinstance(row, dict) and "nfe" in row:
            keys = {"nfe": "d", distance: ".2f", "trajectory_rmse": ".3f", "images_per_s": ".0f"}
            rows.append([name, *(format(row[key], form) if key in row else "-" for key, form in keys.items())])
    if "speedup" in results:
        rows.append(["ratio", f"{results['teacher']['nfe'] / results['student']['nfe']:.0f}x fewer", "", "",
                     f"{results['speedup']:.1f}x"])
    return rows
