"""Distances d(prediction, target) -> (B,). One file = one distance.

A distance is called with two (B, ...) tensors, is zero exactly where they are equal, and gives one value a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate

from pidistill.errors import PidistillError
from pidistill.parts import in_parts
from pidistill.precision import HALF, Autocast, autocast

TINY = 1e-10  # LPIPS's: what is added to the norm of a position's features


class Perceptual(nn.Module):
    """LPIPS's distance over the maps of a feature network (Zhang et al., 2018, Eq. 1), (B, C, H, W) twice -> (B,).

    Subclasses define `layers(x)`: images in [-1, 1] -> maps (B, c, ...). At every position the channels are scaled to
    unit length; the squared difference is weighted over channels, averaged over positions and summed over layers, in
    float32. Nothing here is trained, and no graph is kept for a target that needs no gradient.

    size: images are resized to size x size, bilinearly. precision: of the network, whatever the run's is.
    microbatch: samples that go through at a time, however many are asked for; less memory, the same gradient.
    """

    normalize: bool = True

    def __init__(self, size: int | None, precision: Autocast, channels_last: bool, microbatch: int | None):
        super().__init__()
        if microbatch is not None and microbatch < 1:
            raise PidistillError(f"objective.distance.microbatch must be at least 1, got {microbatch}")
        self.size, self.precision, self.channels_last, self.microbatch = size, precision, channels_last, microbatch

    def layers(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def heads(self) -> Sequence[Tensor] | None:
        """Weights (c,) of every layer's channels; None for 1."""
        return None

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse samples of shape (C, H, W) that the network cannot take, before a run begins."""

    def freeze(self) -> None:
        """To be called once the networks are there."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        self.train().requires_grad_(False)

    def train(self, mode: bool = True) -> Perceptual:
        """Stays in evaluation mode, as its networks are: batch statistics would make samples depend on each other."""
        self.training = False
        return self

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return in_parts(self.compare, prediction, target, self.microbatch)

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
            targets = [self.scaled(f) for f in self.maps(target)]
        distance = torch.zeros(len(prediction), dtype=prediction.dtype, device=prediction.device)
        heads = self.heads()
        for k, (f, g) in enumerate(zip(self.maps(prediction), targets, strict=True)):
            e = (self.scaled(f) - g).square()
            e = e if heads is None else e * heads[k].reshape(-1, *[1] * (e.ndim - 2))
            distance = distance + e.sum(dim=1, keepdim=True).flatten(1).mean(dim=1)
        return distance

    def maps(self, x: Tensor) -> list[Tensor]:
        """The network's maps of images, resized, in the chosen precision, lifted to float32."""
        if self.size is not None:
            x = interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        shared: dict[str, Tensor] = {}
        with autocast(self.precision, x.device):
            maps = self.layers(_Restore.apply(x, shared) if self.precision == "fp16" else x)
        if self.precision == "fp16":
            return list(_Enlarge.apply(shared, *maps))
        return [f.float() if f.dtype in HALF.values() else f for f in maps]

    def scaled(self, f: Tensor) -> Tensor:
        if not self.normalize:
            return f
        norm = f.square().sum(dim=1, keepdim=True).clamp_min(TINY**2).sqrt()  # clamped: sqrt has no slope at 0
        return f / (norm + TINY)


# In the network a position's share of the gradient is about 1 / (B H W), 3e-7 for 64 images of 224x224, and float16 loses
# it: a quarter for 2 images of 96x96, all of it for a hundredth of that loss. So it is multiplied by a power of two where it
# enters, its largest entry to between 128 and 256 (float16 ends at 65504), and divided by it where it leaves. The trainer's
# loss scale does not do this: it is there for fp16 runs alone, and follows the student's gradient.


class _Enlarge(torch.autograd.Function):
    """The maps in float32; multiplies their gradients by a common factor, which stays on the device."""

    @staticmethod
    def forward(ctx: Any, shared: dict[str, Tensor], *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.shared, ctx.dtypes = shared, [f.dtype for f in maps]
        return tuple(f.float() for f in maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        largest = torch.stack([g.abs().amax() for g in gradients]).amax()
        ctx.shared["factor"] = factor = torch.exp2(8 - largest.clamp(1e-30, 1e30).log2().ceil())
        return None, *((g * factor).to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))


class _Restore(torch.autograd.Function):
    """The images; divides their gradient by the factor of `_Enlarge`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
        ctx.shared = shared
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.shared["factor"], None
