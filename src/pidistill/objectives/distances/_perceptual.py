"""LPIPS's distance over the maps f_l of a feature network (Zhang et al., 2018, Eq. 1):

    d(a, b) = sum over layers l of the mean over positions p of sum over channels c of w_lc (u_lpc(a) - u_lpc(b))^2,

where u_lp = f_lp / |f_lp| is the feature vector of a position, scaled to unit length, and w_l >= 0 are the layer's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast, autocast
from pidistill.objectives.distances._microbatched import compare_in_microbatches
from pidistill.objectives.distances.base import check_shapes

TINY = 1e-10  # LPIPS's: what is added to the norm of a position's features


class Perceptual(nn.Module):
    """The distance compares the maps of a feature network, (B, C, H, W) twice -> (B,).

    Subclasses define `layers(x)`: images in [-1, 1] -> maps (B, c, ...). The maps are compared in float32. Nothing here is
    trained, and no graph is kept for a target that needs no gradient.

    size: images are resized to size x size, bilinearly; None leaves them.
    precision: of the network, whatever the run's is.
    channels_last: memory format of the network.
    microbatch: samples that go through at a time, however many a batch has; less memory, the same gradient.
    """

    normalize: bool = True

    def __init__(self, size: int | None, precision: Autocast, channels_last: bool, microbatch: int | None):
        super().__init__()
        if microbatch is not None and microbatch < 1:
            raise PidistillError(f"objective.distance.microbatch must be at least 1, got {microbatch}")
        self.size, self.precision, self.channels_last, self.microbatch = size, precision, channels_last, microbatch

    def layers(self, x: Tensor) -> list[Tensor]:
        """Give the network's maps (B, c, ...) of images."""
        raise NotImplementedError

    @property
    def heads(self) -> Sequence[Tensor] | None:
        """Give the weights w_l, (c,), of every layer's channels; None stands for 1."""
        return None

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse samples of shape (C, H, W) that the network cannot take, before a run begins."""

    def freeze(self) -> None:
        """Fix the networks, as a subclass must do once they are there: evaluation mode, no gradients of weights."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        self.train().requires_grad_(False)

    def train(self, mode: bool = True) -> Perceptual:
        """Stay in evaluation mode, as the networks do: batch statistics would make samples depend on each other."""
        self.training = False
        return self

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_shapes(prediction, target)
        return compare_in_microbatches(self.compare, prediction, target, self.microbatch)

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the distance of all samples at once, (B, C, H, W) twice -> (B,)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
            targets = self.compute_maps(target)
        heads: Sequence[Tensor | None] = self.heads or [None] * len(targets)
        terms = [_MapDistance.apply(f, g, head, self.normalize)
                 for f, g, head in zip(self.compute_maps(prediction), targets, heads, strict=True)]
        return torch.stack(terms).sum(dim=0).to(prediction.dtype)

    def compute_maps(self, x: Tensor) -> list[Tensor]:
        """Compute the network's maps of images, resized, in the chosen precision; those of fp16 are lifted to float32."""
        if self.size is not None:
            x = interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        shared: dict[str, Tensor] = {}
        with autocast(self.precision, x.device):
            maps = self.layers(_RestoreGradient.apply(x, shared) if self.precision == "fp16" else x)
        return list(_EnlargeGradient.apply(shared, *maps)) if self.precision == "fp16" else maps


BLOCK = 2**20  # numbers of a map that are compared at a time on the CPU: with their differences they stay in its cache


class _MapDistance(torch.autograd.Function):
    """A layer's term is the mean over positions of sum_c head_c (f_c/|f| - g_c/|g|)^2; (B, c, ...) twice -> (B,).

    It is computed in float32, and is one function, since its chain of operations on VGG's large maps took as long as VGG:
    kept for the backward pass are the maps alone, in their own type, and on the CPU they are read block by block.
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor, g: Tensor, head: Tensor | None, normalize: bool) -> Tensor:
        ctx.save_for_backward(f, g, head)
        ctx.normalize = normalize
        total = torch.zeros(len(f), dtype=torch.promote_types(f.dtype, torch.float32), device=f.device)
        for k, x, y in split_into_blocks(merge_positions(f), merge_positions(g)):
            square = (normalise_channels(x, normalize)[0] - normalise_channels(y, normalize)[0]).square_()
            total[k] += (square if head is None else square.mul_(head.reshape(-1, 1))).sum(dim=(1, 2))
        return total / max(1, f[0, 0].numel())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        f, g, head = ctx.saved_tensors
        normalize, scale = ctx.normalize, 2 * gradient / max(1, f[0, 0].numel())
        results = [torch.empty_like(merge_positions(maps)) if needed else None
                   for maps, needed in zip((f, g), ctx.needs_input_grad)]
        outputs = [split_into_blocks(r, r) if r is not None else None for r in results]
        for k, x, y in split_into_blocks(merge_positions(f), merge_positions(g)):
            (a, norm_a), (b, norm_b) = normalise_channels(x, normalize), normalise_channels(y, normalize)
            slope = (a - b) * scale[k].reshape(-1, 1, 1)
            slope = slope if head is None else slope.mul_(head.reshape(-1, 1))
            for sign, unit, norm, output in ((1, a, norm_a, outputs[0]), (-1, b, norm_b, outputs[1])):
                if output is None:
                    continue
                side_slope = slope * sign
                if norm is not None:  # |f| is a function of f too
                    side_slope -= unit * (unit * side_slope).sum(dim=1, keepdim=True)
                    side_slope /= norm
                next(output)[1].copy_(side_slope)
        return *(None if r is None else r.view(f.shape) for r in results), None, None


def merge_positions(x: Tensor) -> Tensor:
    """Merge all axes after the channels, (B, c, ...) -> (B, c, positions), in any memory format."""
    return x.flatten(2) if x.ndim > 2 else x[..., None]


def split_into_blocks(f: Tensor, g: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Split two maps (B, c, positions) into blocks that the CPU's cache holds; on other devices the whole is one block.

    Yields the samples of a block, and the block of either map.
    """
    if f.device.type != "cpu":
        yield slice(None), f, g
        return
    positions = max(1, BLOCK // f.shape[1])
    samples = max(1, positions // f.shape[2])
    for k in range(0, len(f), samples):
        for p in range(0, f.shape[2], positions):
            yield slice(k, k + samples), f[k:k + samples, :, p:p + positions], g[k:k + samples, :, p:p + positions]


def normalise_channels(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """Divide x (b, c, p) by its norm over channels, in float32 (or float64); gives that norm too.

    normalize: False leaves x as it is, and gives None for the norm.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not normalize:
        return x, None
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(TINY).add_(TINY)
    return x / norm, norm


# In the network a position's share of the gradient is about 1 / (B H W), 3e-7 for 64 images of 224x224, and float16 loses
# it: a quarter for 2 images of 96x96, all of it for a hundredth of that loss. So it is multiplied by a power of two where it
# enters, its largest entry to between 128 and 256 (float16 ends at 65504), and divided by it where it leaves. The trainer's
# loss scale does not do this: it is there for fp16 runs alone, and follows the student's gradient.


class _EnlargeGradient(torch.autograd.Function):
    """The maps are given in float32, and their gradients are multiplied by a common factor, which stays on the device."""

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


class _RestoreGradient(torch.autograd.Function):
    """The images are given as they are, and their gradient is divided by the factor of `_EnlargeGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
        ctx.shared = shared
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.shared["factor"], None
