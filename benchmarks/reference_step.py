"""A step of PID as Algorithm 1 is printed: what every ratio in docs/performance.md is measured against.

Written to be read beside the paper, not to be fast: two passes of the student and one of the teacher in float32, eagerly;
the derivative from the two states (Eq. 10); LPIPS as two passes of VGG16; PyTorch's RAdam and one line of EMA for every
tensor. `plain_networks` moreover computes attention and resampling as the published networks do, by products with the whole
matrix of weights and by grouped (transposed) convolutions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import Grid
from pidistill.models.student import Student
from pidistill.nets.parts import native, unet


def reference_loss(student: Student, teacher: Denoiser, distance: Callable[[Tensor, Tensor], Tensor], grid: Grid, z: Tensor,
                   i: Tensor, labels: Tensor | None = None) -> Tensor:
    """Eq. (11), one value a sample. z: (B, C, H, W) at T, i: (B,) grid indices."""
    times = grid.t.to(z)
    after = torch.where(i < len(times) - 1, i + 1, i - 1)
    t, u = (times[k].reshape(-1, 1, 1, 1) for k in (i, after))
    x = student(z, t.flatten(), labels)
    x_next = student(z, u.flatten(), labels)
    slope = (x - x_next) / (t - u)
    with torch.no_grad():
        target = teacher(x, t.flatten(), labels)
    return distance(x - t * slope, target)


class ReferenceStep:
    """Loss, gradients, RAdam and the average of one step, each as its textbook has it."""

    def __init__(self, student: Student, teacher: Denoiser, distance: Callable[[Tensor, Tensor], Tensor], grid: Grid,
                 lr: float = 2e-4, beta: float = 0.99995):
        self.student, self.teacher, self.distance, self.grid, self.beta = student, teacher, distance, grid, beta
        self.optimizer = torch.optim.RAdam(student.parameters(), lr=lr)
        self.average = copy.deepcopy(student).requires_grad_(False)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return reference_loss(self.student, self.teacher, self.distance, self.grid, batch["z"], batch["i"],
                              batch.get("labels")).mean()

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, p in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.mul_(self.beta).add_(p, alpha=1 - self.beta)
        return loss.detach()


def grouped_resample(x: Tensor, kernel: Tensor | None, pad: int, *, up: bool) -> Tensor:
    """Doubling and halving as a convolution of every channel with the filter, by default the 2x2 box."""
    c = x.shape[1]
    f = (x.new_full((1, 1, 2, 2), 0.25) if kernel is None else kernel.to(x.dtype)).expand(c, 1, -1, -1)
    if up:
        return F.conv_transpose2d(x, f * 4, groups=c, stride=2, padding=pad)
    return F.conv2d(x, f, groups=c, stride=2, padding=pad)


def textbook_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with the matrix of weights in memory."""
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return weights @ v


@contextlib.contextmanager
def plain_networks() -> Iterator[None]:
    """PyTorch's own operators; attention and resampling as the published networks compute them."""
    with native.switched_off(), patch.object(unet, "resample", grouped_resample), \
            patch.object(F, "scaled_dot_product_attention", textbook_attention):
        yield


class PlainLPIPS(nn.Module):
    """LPIPS of our `distances.lpips.LPIPS` module's weights in float32: VGG16 over images of 224, twice."""

    def __init__(self, lpips: nn.Module):
        super().__init__()
        self.lpips = lpips

    def features(self, x: Tensor) -> list[Tensor]:
        x = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
        maps = self.lpips.layers(x)
        return [f / (f.square().sum(dim=1, keepdim=True).clamp_min(1e-20).sqrt() + 1e-10) for f in maps]

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.features(target)
        sums = [((f - g).square() * head.reshape(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
                for f, g, head in zip(self.features(prediction), targets, self.lpips.heads, strict=True)]
        return torch.stack(sums).sum(dim=0)
