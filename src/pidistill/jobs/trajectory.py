"""`pidistill trajectory`: the student's states from T to eps above the teacher's, for the same noise (Figure 8)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pidistill.core.processes import choose_device
from pidistill.core.profiles import Average
from pidistill.core.registry import find_member
from pidistill.core.seeds import noise, parse_integers
from pidistill.core.tensors import find_device
from pidistill.evaluation.pictures import check_drawable, write_captioned
from pidistill.files.folders import check_free
from pidistill.models.denoiser import Denoiser
from pidistill.models.drawing import choose_labels
from pidistill.models.load import load_pair
from pidistill.models.student import Student
from pidistill.nets.base import Own


def draw_trajectory_of_spec(spec: str, out: Path, seeds: str, labels: str | None = None, *, teacher: str | None = None,
                       ema: Average | None = None, columns: int = 10, device: str = "auto", force: bool = False,
                       net: Own | None = None) -> str:
    """Draw the trajectories of the student that a spec names; gives a line on how close it is to its teacher.

    spec: of the student.
    out: the picture's file.
    seeds, labels: numbers and ranges, `0-3`; without labels each seed has its own.
    teacher: another than the one that the student was made from. ema: EMA rate of the student, or the width of a profile.
    columns: times from T to eps.
    device: as `choose_device` takes it.
    force: what is there is replaced.
    net: of the student, as `load_student` takes it.
    """
    numbers = parse_integers(seeds, most=100)
    classes = None if labels is None else parse_integers(labels, "labels")
    check_free(out, force)
    student, denoiser = load_pair(spec, teacher, ema, net)
    target = choose_device(device)
    student, denoiser = student.to(target), denoiser.to(target)
    y = choose_labels(classes, student.num_classes, numbers)
    rms = draw_trajectory(out, student, denoiser, numbers, y, columns)
    return f"{len(numbers)} trajectories in {out}; r.m.s. difference at eps {rms:.3f}"


@torch.inference_mode()
def compute_trajectories(student: Student, teacher: Denoiser, seeds: list[int], labels: Tensor | None, columns: int,
                 substeps: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Compute times (K,), the student's and the teacher's states (K, B, C, H, W) on the same noise.

    seeds, labels: of the B images; labels (B,) or None.
    columns: K, points of the teacher's Karras grid from T to eps; where they coincide, there are fewer.
    substeps: of Heun's method between two points, for the teacher's states.
    """
    fine = teacher.grid_times((columns - 1) * substeps + 1)
    z = noise(seeds, teacher.shape).to(find_device(teacher)) * teacher.t_max
    y = None if labels is None else labels.to(z.device)
    indices = torch.linspace(0, len(fine) - 1, columns).round().long().unique().tolist()
    ours = student.trajectory(z, fine[indices], y).cpu()  # first: only a student of the form `trajectory` has one
    states = [z, *(x for _, x in find_member("samplers", "heun")(teacher, z, fine, y))]
    return fine[indices], ours, torch.stack([states[k] for k in indices]).cpu()


def draw_trajectory(path: Path, student: Student, teacher: Denoiser, seeds: list[int], labels: Tensor | None,
                    columns: int = 10) -> float:
    """Draw student and teacher, a row each for every seed; returns the r.m.s. difference of the last states, in data units.

    A state at time t is shown times sigma_data / sqrt(sigma_data^2 + t^2): at the contrast of an image.

    path: of the picture.
    seeds, labels, columns: as `compute_trajectories` takes them.
    """
    check_drawable(teacher.shape)
    ts, ours, theirs = compute_trajectories(student, teacher, seeds, labels, columns)
    contrast = (teacher.sigma_data / (teacher.sigma_data**2 + ts**2).sqrt()).float().reshape(-1, 1, 1, 1, 1)
    rows = torch.stack([ours * contrast, theirs * contrast], dim=0).permute(2, 0, 1, 3, 4, 5)  # (B, who, K, C, H, W)
    write_captioned(path, rows.reshape(-1, *teacher.shape), len(ts), ["student", "teacher"] * len(seeds),
                    [f"t = {t:.3g}" for t in ts.tolist()])
    return (ours[-1].double() - theirs[-1].double()).square().mean().sqrt().item()
