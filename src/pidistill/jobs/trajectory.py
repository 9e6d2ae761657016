"""`pidistill trajectory`: the student's states from T to eps above the teacher's, for the same noise (Figure 8)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.processes import choose_device
from pidistill.core.profiles import Average
from pidistill.core.registry import find_member
from pidistill.core.seeds import noise, parse_integers
from pidistill.core.tensors import find_device
from pidistill.evaluation.pictures import ANIMATED, caption_grid, check_drawable, save_animation, write_captioned
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
    out: the picture's file; .gif and .webp make an animation.
    seeds, labels: numbers and ranges, `0-3`; without labels each seed has its own.
    teacher: another than the one that the student was made from. ema: EMA rate of the student, or the width of a profile.
    columns: times from T to eps.
    device: as `choose_device` takes it.
    force: what is there is replaced.
    net: of the student, as `load_student` takes it.
    """
    numbers = parse_integers(seeds, most=100)
    classes = None if labels is None else parse_integers(labels, "labels")
    if out.suffix.lower() not in (".png", *ANIMATED):
        raise PidistillError(f"--out must end in .png, or in {' or '.join(ANIMATED)} to move, got {out}")
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
    columns: K, points of the teacher's Karras grid from T to eps, or of the times that a student alone knows; fewer where
        they coincide, or the student knows fewer.
    substeps: of Heun's method between two points of the grid, for the teacher's states.
    """
    fine, indices = choose_shown_times(student, teacher, columns, substeps)
    z = noise(seeds, teacher.shape).to(find_device(teacher)) * teacher.t_max
    y = None if labels is None else labels.to(z.device)
    ours = student.trajectory(z, fine[indices], y).cpu()  # first: not all students have one
    states = [z, *(x for _, x in find_member("samplers", "heun")(teacher, z, fine, y))]
    return fine[indices], ours, torch.stack([states[k] for k in indices]).cpu()


def choose_shown_times(student: Student, teacher: Denoiser, columns: int, substeps: int) -> tuple[Tensor, list[int]]:
    """Choose the times that the teacher goes by, (n,) float64 from T to eps, and which of them are shown.

    A student of times of its own knows no others; the teacher comes by these too. Parameters: `compute_trajectories`.
    """
    fine = teacher.grid_times((columns - 1) * substeps + 1)
    choose = lambda count: torch.linspace(0, count - 1, min(columns, count)).round().long().unique()
    if student.times is None:
        return fine, choose(len(fine)).tolist()
    own = torch.tensor(student.times, dtype=fine.dtype)
    apart = (fine[:, None] / own - 1).abs().min(dim=1).values > 1e-6  # from all of the student's
    fine = torch.cat([fine[apart], own]).sort(descending=True).values
    shown = own[choose(len(own))]
    return fine, [k for k, t in enumerate(fine.tolist()) if t in shown.tolist()]


def draw_trajectory(path: Path, student: Student, teacher: Denoiser, seeds: list[int], labels: Tensor | None,
                    columns: int = 10) -> float:
    """Draw student and teacher, a row each for every seed; returns the r.m.s. difference of the last states, in data units.

    Where the path ends as `ANIMATED` says, the picture moves: at each time, the teacher's states above the student's.

    A state at time t is shown times sigma_data / sqrt(sigma_data^2 + t^2): at the contrast of an image.

    path: of the picture.
    seeds, labels, columns: as `compute_trajectories` takes them.
    """
    check_drawable(teacher.shape)
    ts, ours, theirs = compute_trajectories(student, teacher, seeds, labels, columns)
    contrast = (teacher.sigma_data / (teacher.sigma_data**2 + ts**2).sqrt()).float().reshape(-1, 1, 1, 1, 1)
    difference = (ours[-1].double() - theirs[-1].double()).square().mean().sqrt().item()
    if path.suffix.lower() in ANIMATED:
        save_animation([caption_grid(torch.cat([x, y]), len(seeds), ["teacher", "student"], [f"t = {t:.3g}"])
                        for t, x, y in zip(ts.tolist(), theirs * contrast, ours * contrast)], path)
        return difference
    rows = torch.stack([ours * contrast, theirs * contrast], dim=0).permute(2, 0, 1, 3, 4, 5)  # (B, who, K, C, H, W)
    write_captioned(path, rows.reshape(-1, *teacher.shape), len(ts), ["student", "teacher"] * len(seeds),
                    [f"t = {t:.3g}" for t in ts.tolist()])
    return difference
