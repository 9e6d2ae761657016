"""Layers of EDM's U-Nets (Karras et al., 2022): linear maps, resampling convolutions, residual blocks.

A residual block is x -> s (skip(x) + conv1(silu(a norm1(conv0(silu(norm0(x))) + c) + b))), s = sqrt(1/2) or 1, in which the
embedding of noise level and class gives c (Song), or a - 1 and b (Dhariwal); attention may follow.

Parameter and buffer names and shapes are those of NVIDIA's EDM checkpoints, so that their weights load by name.
The code is our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import run_outside_autocast
from pidistill.nets.parts import native
from pidistill.nets.parts.initialisation import XAVIER, Init, kaiming, xavier, zeros
from pidistill.nets.parts.resampling import make_filter_kernel, resample


class Linear(nn.Module):
    """The layer is an affine map (B, in) -> (B, out), whose first weights `init` draws."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, init: Init = XAVIER):
        super().__init__()
        self.in_features = in_features
        weight, start = init((out_features, in_features), in_features, out_features)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(start) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """The layer convolves, and may double or halve the size, (B, cin, H, W) -> (B, cout, H', W').

    kernel: width of the convolution's window, 1 or 3; 0 resamples only.
    up, down: doubles, or halves, height and width.
    resample_filter: taps of the filter that does so.
    fused: filters after the convolution instead of before it when going down (NCSN++'s residual input branch), which is
        another function, not merely another speed.
    init: draws the first weights.
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
            self.register_buffer("resample_filter", make_filter_kernel(resample_filter))

    @property
    def filter_pad(self) -> int:
        """Give the zeros on each side with which an even number of taps exactly doubles or halves a size."""
        return (self.resample_filter.shape[-1] - 1) // 2

    def resize(self, x: Tensor, pad: int | None = None) -> Tensor:
        """Resample x with this layer's filter, (B, C, H, W) -> (B, C, H', W')."""
        return resample(x, None if self.box else self.resample_filter, self.filter_pad if pad is None else pad, up=self.up)

    def forward(self, x: Tensor) -> Tensor:
        if self.down and self.fused and self.weight is not None:
            return self.resize(F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + self.filter_pad), 0)
        if self.up or self.down:
            x = self.resize(x)
        return x if self.weight is None else convolve(x, self.weight, self.bias)


WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x with a 1x1 or 3x3 weight (out, in, k, k) and keep its size, (B, in, H, W) -> (B, out, H, W)."""
    if weight.shape[-1] == 3:
        return native.conv3x3(x, weight, bias)
    if native.usable(x) and WIDE:  # oneDNN uses AVX-512 on all processors that have it, PyTorch's MKL on Intel's alone
        return F.conv2d(native.to_channels_last(x), weight, bias)
    if native.usable(x):  # in NHWC it is one matrix product
        return F.linear(native.to_channels_last(x).permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def make_group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Make a group normalisation of at most 32 groups, of at least 4 channels each.

    Raises PidistillError if the channels do not divide into as many groups.
    """
    groups = max(min(32, channels // 4), 1)
    if channels % groups:
        raise PidistillError(f"{channels} channels do not divide into {groups} groups; "
                             "choose model_channels and channel_mult so that every sum of two widths is a multiple of 32")
    return nn.GroupNorm(groups, channels, eps=eps)


@dataclass(frozen=True)
class BlockStyle:
    """A style is what sets the residual blocks of two networks apart."""

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
    """The residual block may attend over positions: (B, cin, H, W), (B, emb) -> (B, cout, H', W').

    up, down: doubles, or halves, height and width, with `resample_filter`.
    attention: self-attention over positions follows.
    dropout: share of the numbers before the last convolution that are set to zero in training.
    style: of Song's networks, or of Dhariwal's.
    """

    def __init__(self, cin: int, cout: int, emb: int, *, up: bool = False, down: bool = False, attention: bool = False,
                 dropout: float = 0.0, resample_filter: Sequence[int] = (1, 1), style: BlockStyle = SONG):
        super().__init__()
        self.in_channels, self.out_channels, self.attention, self.dropout = cin, cout, attention, dropout
        self.adaptive, self.skip_scale = style.adaptive, style.skip_scale
        resampling: dict[str, Any] = dict(up=up, down=down, resample_filter=resample_filter, init=style.init)
        self.norm0 = make_group_norm(cin, style.eps)
        self.conv0 = Conv2d(cin, cout, 3, **resampling)
        self.affine = Linear(emb, cout * (2 if style.adaptive else 1), init=style.init)
        self.norm1 = make_group_norm(cout, style.eps)
        self.conv1 = Conv2d(cout, cout, 3, init=style.init_out)
        self.skip: Conv2d | None = None
        if cin != cout or up or down:
            self.skip = Conv2d(cin, cout, 1 if cin != cout or style.resample_proj else 0, **resampling)
        if attention:
            self.heads = max(cout // style.head_channels, 1) if style.head_channels else 1
            if cout % self.heads:
                raise PidistillError(f"{cout} channels do not divide into {self.heads} attention heads of about "
                                     f"{style.head_channels}; choose widths that are multiples of {style.head_channels}")
            self.norm2 = make_group_norm(cout, style.eps)
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
        h = self.activate_and_convolve(x, self.norm0, self.conv0, bias)
        if self.dropout and self.training:
            h = native.norm_silu(h, self.norm1, scale, shift)
            h = self.conv1(F.dropout(h, self.dropout))
        else:
            h = self.activate_and_convolve(h, self.norm1, self.conv1, self.conv1.bias, scale, shift)
        x = ((x if self.skip is None else self.skip(x)) + h) * self.skip_scale
        return self.attend(x) if self.attention else x

    def activate_and_convolve(self, x: Tensor, norm: nn.GroupNorm, conv: Conv2d, bias: Tensor | None,
                              scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Compute conv(silu(norm(x) * scale + shift)), (B, in, H, W) -> (B, out, H', W').

        bias: of the convolution, (out,), or (B, out) for one of each sample.
        scale, shift: (B, in), or None for 1 and 0.
        """
        assert conv.weight is not None
        if conv.up or conv.down:
            x = native.norm_silu(x, norm, scale, shift)
            return native.conv3x3(conv.resize(x), conv.weight, bias)
        return native.norm_silu_conv(x, norm, conv.weight, bias, scale, shift)

    def attend(self, x: Tensor) -> Tensor:
        """Add self-attention over positions to x, (B, C, H, W) -> the same."""
        b, c, height, width = x.shape
        # EDM lays qkv out as (head, channel, which of q k v): its rows are sorted here, not its larger output.
        parameters: Any = self.qkv.weight, self.qkv.bias
        weight, bias = (p.unflatten(0, (c, 3)).transpose(0, 1).flatten(0, 1) for p in parameters)
        qkv = convolve(native.norm_silu(x, self.norm2, silu=False), weight, bias)
        q, k, v = qkv.reshape(b, 3, self.heads, c // self.heads, height * width).permute(1, 0, 2, 4, 3)
        a = F.scaled_dot_product_attention(q, k, v)
        return (self.proj(a.transpose(2, 3).reshape(b, c, height, width)) + x) * self.skip_scale


def check_image_size(net: str, shape: Sequence[int], step: int) -> tuple[int, int]:
    """Refuse images (C, H, W), in the name of `net`, unless H and W are multiples of `step`; give channels and height."""
    if len(shape) != 3:
        raise PidistillError(f"{net} needs images of shape (C, H, W), got {tuple(shape)}; use mlp")
    if shape[1] % step or shape[2] % step:
        raise PidistillError(f"{net}: height and width must be multiples of {step}, got {shape[1]}x{shape[2]}")
    return shape[0], shape[1]
