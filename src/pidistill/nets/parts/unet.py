"""Parts of EDM's U-Nets (Karras et al., 2022): linear maps, resampling convolutions, residual blocks, embeddings.

Parameter and buffer names and shapes are those of NVIDIA's EDM checkpoints, so that their weights load by name.
The code is our own. Where EDM resamples with grouped (transposed) convolutions, filters are sums of slices here, and
the 2x2 box is what it is: average pooling and nearest-neighbour upsampling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import run_outside_autocast
from pidistill.nets.parts import native

# First weight and bias of a layer, from the weight's shape (out, in, ...), its fan-in and its fan-out.
Init = Callable[[Sequence[int], int, int], tuple[Tensor, Tensor]]


def xavier(gain: float = 1.0) -> Init:
    """Uniform with variance 2 gain^2 / (fan_in + fan_out), bias zero: Song's networks."""
    def init(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
        return (torch.rand(*shape) * 2 - 1) * math.sqrt(6 / (fan_in + fan_out)) * gain, torch.zeros(shape[0])
    return init


def kaiming(gain: float = 1.0) -> Init:
    """Uniform with variance gain^2 / fan_in, the bias too: Dhariwal's networks with gain sqrt(1/3)."""
    def init(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
        limit = gain * math.sqrt(3 / fan_in)
        return (torch.rand(*shape) * 2 - 1) * limit, (torch.rand(shape[0]) * 2 - 1) * limit
    return init


def zeros(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """Dhariwal's output layers."""
    return torch.zeros(*shape), torch.zeros(shape[0])


def normal(shape: Sequence[int], fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """Unit variance: what Kaiming's times sqrt(fan_in) comes to (Dhariwal's class embedding)."""
    return torch.randn(*shape), torch.zeros(shape[0])


XAVIER = xavier()


class Linear(nn.Module):
    """Affine map (B, in) -> (B, out) with EDM's initialisation."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, init: Init = XAVIER):
        super().__init__()
        self.in_features = in_features
        weight, start = init((out_features, in_features), in_features, out_features)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(start) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def filter_kernel(taps: Sequence[float]) -> Tensor:
    """Separable filter (1, 1, k, k) of sum 1 from its k taps."""
    f = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(f, f)[None, None] / f.sum() ** 2


def resample(x: Tensor, kernel: Tensor | None, pad: int, *, up: bool) -> Tensor:
    """Double or halve H and W with a separable filter (1, 1, k, k) and its zero padding; None: the 2x2 box.

    Axis by axis as sums of slices, where EDM has convolutions of every channel by itself, which no hardware likes.
    """
    if kernel is None:
        return F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)
    taps = kernel[0, 0].sum(dim=0).to(x.dtype)
    for axis in (2, 3):
        x = (spread if up else halve)(x, taps, pad, axis)
    return x


def edged(x: Tensor, pad: int, axis: int) -> Tensor:
    return F.pad(x, (0, 0, pad, pad) if axis == 2 else (pad, pad)) if pad else x


def halve(x: Tensor, taps: Tensor, pad: int, axis: int) -> Tensor:
    """y_i = sum_k f_k x_{2i + k - pad}."""
    x, k, before = edged(x, pad, axis), len(taps), (slice(None),) * axis
    n = (x.shape[axis] - k) // 2 + 1
    return functools.reduce(torch.add, (taps[j] * x[(*before, slice(j, j + 2 * n - 1, 2))] for j in range(k)))


def spread(x: Tensor, taps: Tensor, pad: int, axis: int) -> Tensor:
    """y_{2m + r - pad} = 2 sum_j f_{2j + r} x_{m - j}: the adjoint of `halve`, times 2, since an input feeds two outputs."""
    length = 2 * (x.shape[axis] - 1) - 2 * pad + len(taps)
    taps = F.pad(taps, (0, len(taps) % 2))
    half, n = len(taps) // 2, x.shape[axis] + len(taps) // 2 - 1
    x = edged(x, half - 1, axis)
    phases = [functools.reduce(torch.add, (2 * taps[2 * j + r] * x.narrow(axis, half - 1 - j, n) for j in range(half)))
              for r in (0, 1)]
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1).narrow(axis, pad, length)


class Conv2d(nn.Module):
    """Convolution with optional 2x resampling, (B, in, H, W) -> (B, out, H', W').

    kernel 0 resamples only. `fused` filters after the convolution instead of before it when going down
    (NCSN++'s residual input branch), which is another function, not merely another speed.
    """

    def __init__(self, cin: int, cout: int, kernel: int, *, up: bool = False, down: bool = False,
                 resample_filter: Sequence[int] = (1, 1), fused: bool = False, init: Init = XAVIER):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel = cin, cout, kernel
        self.up, self.down, self.fused = up, down, fused
        self.box = tuple(resample_filter) == (1, 1)
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            weight, bias = init((cout, cin, kernel, kernel), cin * kernel**2, cout * kernel**2)
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.resample_filter: Tensor
        if up or down:
            self.register_buffer("resample_filter", filter_kernel(resample_filter))

    @property
    def filter_pad(self) -> int:
        return (self.resample_filter.shape[-1] - 1) // 2

    def resampled(self, x: Tensor, pad: int | None = None) -> Tensor:
        return resample(x, None if self.box else self.resample_filter, self.filter_pad if pad is None else pad, up=self.up)

    def forward(self, x: Tensor) -> Tensor:
        if self.down and self.fused and self.weight is not None:
            return self.resampled(F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + self.filter_pad), 0)
        if self.up or self.down:
            x = self.resampled(x)
        return x if self.weight is None else convolve(x, self.weight, self.bias)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, in, H, W) -> (B, out, H, W) of a 1x1 or 3x3 convolution that keeps the size."""
    if weight.shape[-1] == 3:
        return native.conv3x3(x, weight, bias)
    if native.usable(x):  # in NHWC it is one matrix product
        return F.linear(native.to_channels_last(x).permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels each."""
    groups = max(min(32, channels // 4), 1)
    if channels % groups:
        raise PidistillError(f"{channels} channels do not divide into {groups} groups; "
                             "choose model_channels and channel_mult so that every sum of two widths is a multiple of 32")
    return nn.GroupNorm(groups, channels, eps=eps)


@dataclass(frozen=True)
class BlockStyle:
    """What sets the residual blocks of two networks apart."""

    adaptive: bool          # the embedding scales and shifts the normalised channels, instead of being added before norm1
    head_channels: int      # per attention head; 0: one head
    skip_scale: float       # after a sum of two branches
    eps: float              # of group normalisation
    resample_proj: bool     # a skip connection that resamples has a 1x1 convolution, even for equal widths
    init: Init
    init_qkv: Init
    init_out: Init          # the last layer of each branch


# sqrt(0.5) keeps the variance of a sum of two unit-variance branches at 1.
SONG = BlockStyle(adaptive=False, head_channels=0, skip_scale=math.sqrt(0.5), eps=1e-6, resample_proj=True,
                  init=XAVIER, init_qkv=xavier(math.sqrt(0.2)), init_out=xavier(1e-5))
ADM = BlockStyle(adaptive=True, head_channels=64, skip_scale=1.0, eps=1e-5, resample_proj=False,
                 init=kaiming(math.sqrt(1 / 3)), init_qkv=kaiming(math.sqrt(1 / 3)), init_out=zeros)


class UNetBlock(nn.Module):
    """Residual block with noise conditioning and optional self-attention, (B, cin, H, W), (B, emb) -> (B, cout, H', W')."""

    def __init__(self, cin: int, cout: int, emb: int, *, up: bool = False, down: bool = False, attention: bool = False,
                 dropout: float = 0.0, resample_filter: Sequence[int] = (1, 1), style: BlockStyle = SONG):
        super().__init__()
        self.in_channels, self.out_channels, self.attention, self.dropout = cin, cout, attention, dropout
        self.adaptive, self.skip_scale = style.adaptive, style.skip_scale
        resample: dict[str, Any] = dict(up=up, down=down, resample_filter=resample_filter, init=style.init)
        self.norm0 = group_norm(cin, style.eps)
        self.conv0 = Conv2d(cin, cout, 3, **resample)
        self.affine = Linear(emb, cout * (2 if style.adaptive else 1), init=style.init)
        self.norm1 = group_norm(cout, style.eps)
        self.conv1 = Conv2d(cout, cout, 3, init=style.init_out)
        self.skip: Conv2d | None = None
        if cin != cout or up or down:
            self.skip = Conv2d(cin, cout, 1 if cin != cout or style.resample_proj else 0, **resample)
        if attention:
            self.heads = max(cout // style.head_channels, 1) if style.head_channels else 1
            if cout % self.heads:
                raise PidistillError(f"{cout} channels do not divide into {self.heads} attention heads of about "
                                     f"{style.head_channels}; choose widths that are multiples of {style.head_channels}")
            self.norm2 = group_norm(cout, style.eps)
            self.qkv = Conv2d(cout, cout * 3, 1, init=style.init_qkv)
            self.proj = Conv2d(cout, cout, 1, init=style.init_out)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        condition = run_outside_autocast(self.affine, emb)
        scale: Tensor | None = None
        shift: Tensor | None = None
        bias: Any = self.conv0.bias
        if self.adaptive:
            scale, shift = condition.chunk(2, dim=1)
            scale = scale + 1
        else:  # the embedding is a bias of each sample
            bias = bias + condition
        h = self.after(x, self.norm0, self.conv0, bias)
        if self.dropout and self.training:
            h = native.norm_silu(h, self.norm1, scale, shift)
            h = self.conv1(F.dropout(h, self.dropout))
        else:
            h = self.after(h, self.norm1, self.conv1, self.conv1.bias, scale, shift)
        x = ((x if self.skip is None else self.skip(x)) + h) * self.skip_scale
        return self.attend(x) if self.attention else x

    def after(self, x: Tensor, norm: nn.GroupNorm, conv: Conv2d, bias: Tensor | None, scale: Tensor | None = None,
              shift: Tensor | None = None) -> Tensor:
        """conv(silu(norm(x) * scale + shift)) with a bias (out,) or (B, out)."""
        assert conv.weight is not None
        if conv.up or conv.down:
            x = native.norm_silu(x, norm, scale, shift)
            return native.conv3x3(conv.resampled(x), conv.weight, bias)
        return native.norm_silu_conv(x, norm, conv.weight, bias, scale, shift)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over positions, with its residual."""
        b, c, height, width = x.shape
        # EDM lays qkv out as (head, channel, which of q k v): its rows are sorted here, not its larger output.
        parameters: Any = self.qkv.weight, self.qkv.bias
        weight, bias = (p.unflatten(0, (c, 3)).transpose(0, 1).flatten(0, 1) for p in parameters)
        qkv = convolve(native.norm_silu(x, self.norm2, silu=False), weight, bias)
        q, k, v = qkv.reshape(b, 3, self.heads, c // self.heads, height * width).permute(1, 0, 2, 4, 3)
        a = F.scaled_dot_product_attention(q, k, v)
        return (self.proj(a.transpose(2, 3).reshape(b, c, height, width)) + x) * self.skip_scale


class PositionalEmbedding(nn.Module):
    """Sinusoidal embedding (B,) -> (B, channels), frequencies from 1 to 1/max_positions, order (sin, cos): DDPM++.

    ADM has the order (cos, sin) and, with `endpoint=False`, frequencies that end one step before 1/max_positions.
    """

    freqs: Tensor

    def __init__(self, channels: int, max_positions: int = 10000, *, endpoint: bool = True, cos_first: bool = False):
        super().__init__()
        exponent = torch.arange(channels // 2, dtype=torch.float32) / (channels // 2 - endpoint)
        self.register_buffer("freqs", (1 / max_positions) ** exponent, persistent=False)
        self.cos_first = cos_first

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = torch.outer(c_noise, self.freqs.to(c_noise.dtype))
        return torch.cat([phase.cos(), phase.sin()] if self.cos_first else [phase.sin(), phase.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Random Fourier features (B,) -> (B, channels) of NCSN++, order (sin, cos); the frequencies are in the checkpoint."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = torch.outer(c_noise, 2 * math.pi * self.freqs.to(c_noise.dtype))
        return torch.cat([phase.sin(), phase.cos()], dim=1)


def image_size(net: str, shape: Sequence[int], step: int) -> tuple[int, int]:
    """Channels and height of images (C, H, W) whose H and W are multiples of `step`; else an error of `net`."""
    if len(shape) != 3:
        raise PidistillError(f"{net} needs images of shape (C, H, W), got {tuple(shape)}; use mlp")
    if shape[1] % step or shape[2] % step:
        raise PidistillError(f"{net}: height and width must be multiples of {step}, got {shape[1]}x{shape[2]}")
    return shape[0], shape[1]
