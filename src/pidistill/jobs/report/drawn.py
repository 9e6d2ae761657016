"""Pictures that a report asks the models for: trajectories, where student and teacher differ most, nearest images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.evaluation.pictures import drawable, write_captioned
from pidistill.files.datasets import open_images
from pidistill.jobs.trajectory import draw_trajectory
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import Student

SEEDS_SHOWN = 10  # seeds of a picture
SEEDS_SEARCHED = 64  # seeds that are looked through for the largest differences


@dataclass(frozen=True)
class Drawn:
    """A picture with its words. title: above it. png: its bytes. alt: what it shows, for those who cannot see it."""

    title: str
    png: bytes
    alt: str
    words: str


def draw_all(student: Student, teacher: Denoiser, data: str | None = None, first_seed: int = 0) -> list[Drawn]:
    """Draw what can be drawn of a student and its teacher, [] where these are no pictures.

    data: images that its own are compared with, as `data` of a run names them.
    first_seed: of those that are looked through.
    """
    if not drawable(student.image_shape):
        return []
    seeds = list(range(first_seed, first_seed + SEEDS_SEARCHED))
    labels = labels_of(seeds, student.num_classes)
    ours, theirs = student.sample(seeds, labels), sample_teacher(teacher, seeds, labels)
    found = [draw_worst(ours, theirs, seeds)]
    if drawable(student.shape):
        found += draw_paths(student, teacher, seeds[:3])
    return found + ([draw_nearest(ours[:SEEDS_SHOWN], data)] if data else [])


def draw_worst(ours: Tensor, theirs: Tensor, seeds: list[int]) -> Drawn:
    """Draw the seeds where student and teacher differ most, the largest difference first; images (N, C, H, W)."""
    rms = (ours - theirs).flatten(1).square().mean(dim=1).sqrt()
    order = rms.argsort(descending=True)[:SEEDS_SHOWN]
    rows = torch.cat([theirs[order], ours[order]])
    heads = [f"{seeds[k]}" for k in order.tolist()]
    worst, middle = rms[order[0]].item(), rms.median().item()
    return Drawn("Where student and teacher differ most", draw_rows(rows, ["teacher", "student"], heads),
                 f"Two rows of images for the seeds {', '.join(heads)}: the teacher's above the student's.",
                 f"Of {len(seeds)} seeds those with the largest r.m.s. difference, {worst:.2f} at most; the median is "
                 f"{middle:.2f}. Numbers are seeds.")


def draw_paths(student: Student, teacher: Denoiser, seeds: list[int]) -> list[Drawn]:
    """Draw the student's states from T to eps above the teacher's; [] for a student without a trajectory."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trajectory.png"
        try:
            rms = draw_trajectory(path, student, teacher, seeds, labels_of(seeds, student.num_classes))
        except PidistillError:  # of a form without states between
            return []
        return [Drawn("From noise to image", path.read_bytes(),
                      f"For each of {len(seeds)} seeds a row of the student's states at times from T to eps, and one of the "
                      "teacher's below it.",
                      f"The student gives each state with one call; the teacher comes by them in many steps. R.m.s. "
                      f"difference at the end: {rms:.3f}.")]


def draw_nearest(ours: Tensor, data: str) -> Drawn:
    """Draw the student's images above the nearest of a data set, by r.m.s. difference of pixels."""
    images = open_images(data)
    if images.shape != tuple(ours.shape[1:]):
        raise PidistillError(f"{data} holds images of {images.shape}, the student draws {tuple(ours.shape[1:])}")
    best, nearest = torch.full((len(ours),), torch.inf), torch.zeros_like(ours)
    for index in range(len(images)):
        y = torch.as_tensor(images.sample(index)["y"])
        rms = (ours - y).flatten(1).square().mean(dim=1).sqrt()
        nearer = rms < best
        best[nearer], nearest[nearer] = rms[nearer], y
    return Drawn("Nearest images of the data", draw_rows(torch.cat([ours, nearest]), ["student", "data"],
                                                         [f"{value:.2f}" for value in best.tolist()]),
                 "A row of the student's images, and below each the image of the data that is nearest to it.",
                 f"By r.m.s. difference of pixels, the numbers above, among {len(images)} images of {data}. A copy would "
                 "stand at 0.")


def draw_rows(rows: Tensor, names: list[str], heads: list[str]) -> bytes:
    """Draw rows of images with captions, as the bytes of a PNG."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.png"
        write_captioned(path, rows, len(heads), names, heads)
        return path.read_bytes()
