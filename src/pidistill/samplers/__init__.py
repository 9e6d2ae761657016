"""ODE samplers (denoise, z, ts, labels) -> yields (t, x). One file = one sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser, device_of
from pidistill.plugins import member
from pidistill.seeds import noise

STEPS = 18  # Heun with 18 steps, 35 evaluations: EDM's setting for 32x32 images


def sampler_times(teacher: Denoiser, steps: int) -> Tensor:
    """(steps + 1,) float64: the teacher's Karras grid and a last 0."""
    return torch.cat([teacher.grid_times(steps), torch.zeros(1, dtype=torch.float64)])


@torch.inference_mode()
def sample_teacher(teacher: Denoiser, seeds: Sequence[int], labels: Tensor | None = None, *, sampler: str = "heun",
                   steps: int = STEPS, batch_size: int = 250, decode: bool = True) -> Tensor:
    """The teacher's own solution for the noise of `seeds`: (len(seeds), C, H, W), float32, CPU; decode: as images."""
    ts, device, images = sampler_times(teacher, steps), device_of(teacher), []
    for k in range(0, len(seeds), batch_size):
        z = noise(seeds[k:k + batch_size], teacher.shape).to(device) * teacher.t_max
        y = None if labels is None else labels[k:k + batch_size].to(device)
        *_, (_, x) = member("samplers", sampler)(teacher, z, ts, y)
        x = teacher.decoder(x) if teacher.decoder and decode else x
        images.append(x.float().cpu())
    return torch.cat(images)
