"""`pidistill trajectory`: the student's states from T to eps above the teacher's, for the same noise (Figure 8)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pidistill.core.registry import member
from pidistill.core.seeds import noise
from pidistill.core.tensors import device_of
from pidistill.evaluation.pictures import check_drawable, write_captioned
from pidistill.models.denoiser import Denoiser
from pidistill.models.student import Student


@torch.inference_mode()
def trajectories(student: Student, teacher: Denoiser, seeds: list[int], labels: Tensor | None, columns: int,
                 substeps: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """times (K,), student's and teacher's states (K, B, C, H, W) at `columns` points of the teacher's Karras grid.

    The teacher's are Heun's with `substeps` steps between two points.
    """
    fine = teacher.grid_times((columns - 1) * substeps + 1)
    z = noise(seeds, teacher.shape).to(device_of(teacher)) * teacher.t_max
    y = None if labels is None else labels.to(z.device)
    states = [z, *(x for _, x in member("samplers", "heun")(teacher, z, fine, y))]
    picked = torch.linspace(0, len(fine) - 1, columns).round().long().unique().tolist()
    return fine[picked], student.trajectory(z, fine[picked], y).cpu(), torch.stack([states[k] for k in picked]).cpu()


def draw_trajectory(path: Path, student: Student, teacher: Denoiser, seeds: list[int], labels: Tensor | None,
                    columns: int = 10) -> float:
    """Write the picture; returns the r.m.s. difference of the last states, in data units.

    A state at time t is shown times sigma_data / sqrt(sigma_data^2 + t^2): at the contrast of an image.
    """
    check_drawable(teacher.shape)
    ts, ours, theirs = trajectories(student, teacher, seeds, labels, columns)
    shown = (teacher.sigma_data / (teacher.sigma_data**2 + ts**2).sqrt()).float().reshape(-1, 1, 1, 1, 1)
    rows = torch.stack([ours * shown, theirs * shown], dim=0).permute(2, 0, 1, 3, 4, 5)  # (B, who, K, C, H, W)
    write_captioned(path, rows.reshape(-1, *teacher.shape), len(ts), ["student", "teacher"] * len(seeds),
                    [f"t = {t:.3g}" for t in ts.tolist()])
    return (ours[-1].double() - theirs[-1].double()).square().mean().sqrt().item()
