"""U-Net of EDM2 (Karras et al., 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"), config G.

Every layer keeps the magnitude of its input by construction: weights have unit rows, sums and concatenations are
weighted, there are no biases and no group normalisation. Equation numbers below are that paper's.

Parameter and buffer names and shapes are those of the `unet.` part of NVIDIA's EDM2 checkpoints, so that their weights
load by name. The preconditioning around it is EDM's with sigma_data = 0.5; its `logvar_fourier` and `logvar_linear`
weigh the loss of training by noise level and have no part in D, so they are dropped. The code is our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import one_hot, run_outside_autocast
from pidistill.nets.parts.resampling import make_filter_kernel, resample
from pidistill.nets.parts.unet import check_image_size, convolve

EPS = 1e-4  # added to every magnitude that is divided by


def magnitude(x: Tensor, dim: Sequence[int]) -> Tensor:
    """Add EPS to the root mean square over `dim`, kept as size 1; at least float32, since squares overflow in fp16."""
    n = math.prod(x.shape[d] for d in dim)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=list(dim), keepdim=True, dtype=dtype) / math.sqrt(n) + EPS


def normalize(x: Tensor, dim: Sequence[int]) -> Tensor:
    """Divide x by its magnitude over `dim`, in the dtype of x (pixel normalisation, with dim = channels)."""
    return x / magnitude(x, dim).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Divide SiLU by the r.m.s. of its output for unit normal input (Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Add a and b with weights that keep the magnitude: ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (Eq. 88)."""
    scale = math.hypot(1 - t, t)
    return a * ((1 - t) / scale) + b * (t / scale)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenate the channels of a and b, whose shares of the sum of squares are as (1 - t)^2 to t^2 (Eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    return torch.cat([a * (scale * (1 - t) / math.sqrt(n_a)), b * (scale * t / math.sqrt(n_b))], dim=1)


class MPFourier(nn.Module):
    """The layer gives random features sqrt(2) cos(f x + phase), (B,) -> (B, channels), in float32 at least (Eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, c_noise: Tensor) -> Tensor:
        wide = torch.promote_types(c_noise.dtype, torch.float32)
        phase = torch.outer(c_noise.to(wide), self.freqs.to(wide)) + self.phases.to(wide)
        return (phase.cos() * math.sqrt(2)).to(c_noise.dtype)


class MPConv(nn.Module):
    """The layer convolves, or with kernel 0 maps linearly, without bias and with rows of unit norm in every use (Eq. 47).

    (B, cin, H, W) -> (B, cout, H, W), or (B, cin) -> (B, cout), times `gain`.
    """

    def __init__(self, cin: int, cout: int, kernel: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, *[kernel] * (2 if kernel else 0)))
        self._forced: tuple[int, int] | None = None  # which tensor in which version has unit rows already

    @property
    def _row(self) -> range:
        return range(1, self.weight.ndim)

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        w = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        w = (w * (gain / (magnitude(w, self._row) * math.sqrt(w[0].numel())))).to(x.dtype)
        return convolve(x, w, None) if w.ndim == 4 else F.linear(x, w)

    @torch.no_grad()
    def normalize_weight(self) -> None:
        """Replace the weight by itself with rows of unit magnitude, unless it was not changed since the last time."""
        w = self.weight
        if not isinstance(w, nn.Parameter):  # functional_call: a stranger's tensor, perhaps with tangents
            return
        if self._forced != (id(w), w._version):
            # Inside jvp and grad a captured tensor must not change. This change is no part of the function that they
            # differentiate, which has w as a constant and starts after it, so it happens outside of them.
            with temporarily_clear_interpreter_stack():
                w.copy_(normalize(w.to(torch.promote_types(w.dtype, torch.float32)), self._row))
            self._forced = (id(w), w._version)


class EDM2Block(nn.Module):
    """The residual block of Figure 21 may attend over positions: (B, cin, H, W), (B, emb) -> (B, cout, H', W').

    decoder: changes the width beside the residual branch; blocks of the encoder change it, and normalise each pixel, before.
    up, down: doubles, or halves, height and width, with `resample_filter`.
    attention: self-attention over positions follows, in heads of about `head_channels`.
    dropout: share of the numbers before the last convolution that are set to zero in training.
    res_balance, attn_balance: weight of the residual, and of the attention's, branch in its sum (Eq. 88).
    clip_act: limit of the absolute values of the output, or None.
    """

    resample_filter: Tensor | None

    def __init__(self, cin: int, cout: int, emb: int, *, decoder: bool = False, up: bool = False, down: bool = False,
                 attention: bool = False, head_channels: int = 64, dropout: float = 0.0,
                 resample_filter: Sequence[float] = (1, 1), res_balance: float = 0.3, attn_balance: float = 0.3,
                 clip_act: float | None = 256.0):
        super().__init__()
        self.decoder, self.up, self.down, self.attention, self.dropout = decoder, up, down, attention, dropout
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        box = tuple(resample_filter) == (1, 1)
        self.register_buffer("resample_filter", None if box else make_filter_kernel(resample_filter), persistent=False)
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(cin if decoder else cout, cout, 3)
        self.emb_linear = MPConv(emb, cout)
        self.conv_res1 = MPConv(cout, cout, 3)
        self.conv_skip = MPConv(cin, cout, 1) if cin != cout else None
        if attention:
            self.heads = max(cout // head_channels, 1)
            if cout % self.heads:
                raise PidistillError(f"{cout} channels do not divide into {self.heads} attention heads of about "
                                     f"{head_channels}; choose widths that are multiples of {head_channels}")
            self.attn_qkv, self.attn_proj = MPConv(cout, cout * 3, 1), MPConv(cout, cout, 1)

    def attend(self, x: Tensor) -> Tensor:
        """Attend over positions with queries, keys and values of unit magnitude, (B, C, H, W) -> the same."""
        b, c, height, width = x.shape
        # Channels are laid out as (head, channel, which of q k v), as in EDM.
        qkv = self.attn_qkv(x).reshape(b, self.heads, c // self.heads, 3, height * width)
        q, k, v = normalize(qkv, [2]).permute(3, 0, 1, 4, 2).contiguous()
        a = F.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(a.transpose(2, 3).reshape(b, c, height, width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.up or self.down:
            pad = 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2
            x = resample(x, self.resample_filter, pad, up=self.up)
        if not self.decoder:
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), [1])
        y = self.conv_res0(mp_silu(x))
        c = run_outside_autocast(self.emb_linear, emb, self.emb_gain)[:, :, None, None] + 1
        y = mp_silu(y * c.to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training) if self.dropout else y)
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.attention:
            x = mp_sum(x, self.attend(x), self.attn_balance)
        return x if self.clip_act is None else x.clip(-self.clip_act, self.clip_act)


class EDM2UNet(nn.Module):
    """EDM2's network computes F(x, c_noise, labels): (B, C, H, W), (B,), (B,) int64 or None -> (B, C, H, W).

    The defaults are the size S; the published sizes differ in model_channels and dropout alone. Without labels a
    conditional network gets a row of zeros, as in the original; its unconditional networks have no classes at all.
    A width below head_channels has one attention head; the original leaves its attention out without a word.
    Under autocast the embedding and the last layer stay in float32, for the reason that `song_unet` gives.

    In training mode a forward pass first replaces the weights by their normalised selves (Eq. 66): once after every
    change of them, such as an optimiser's step. So microbatches, several calls in one graph, recomputation and
    derivatives (torch.func.jvp) all see the same weights; every process of a data-parallel run does the same; averages
    and copies, in evaluation mode, are left alone. The normalisation at use makes the function the same either way, up
    to EPS; what changes is the size of an optimiser's step relative to the weights.

    shape: of an image, (C, H, W); H and W must be multiples of 2^(levels - 1), and H names the blocks and places attention.
    model_channels, channel_mult: width, and its factor at each level, the finest first.
    channel_mult_noise, channel_mult_emb: widths, in model_channels, of the Fourier features and of the embedding; by default
        those of the finest and of the widest level.
    num_blocks, attn_resolutions: residual blocks at each level, and the heights at which they have attention.
    label_balance, concat_balance: weight of the class in the embedding (Eq. 88), and of a skip connection (Eq. 103).
    dropout, head_channels, resample_filter, res_balance, attn_balance, clip_act: of every `EDM2Block`.
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0, model_channels: int = 192,
                 channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_noise: int | None = None,
                 channel_mult_emb: int | None = None, num_blocks: int = 3, attn_resolutions: Sequence[int] = (16, 8),
                 dropout: float = 0.0, head_channels: int = 64, resample_filter: Sequence[float] = (1, 1),
                 label_balance: float = 0.5, concat_balance: float = 0.5, res_balance: float = 0.3,
                 attn_balance: float = 0.3, clip_act: float | None = 256.0):
        super().__init__()
        if model_channels < 1 or head_channels < 1:
            raise PidistillError("edm2_unet: model_channels and head_channels must be 1 or more, got "
                                 f"{model_channels} and {head_channels}")
        if len(resample_filter) % 2:
            raise PidistillError(f"edm2_unet: resample_filter needs an even number of taps, got {list(resample_filter)}")
        channels, height = check_image_size("edm2_unet", shape, 1 << (len(channel_mult) - 1))
        widths = [model_channels * mult for mult in channel_mult]
        noise = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        emb = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.num_classes, self.label_balance, self.concat_balance = num_classes, label_balance, concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier, self.emb_noise = MPFourier(noise), MPConv(noise, emb)
        self.emb_label = MPConv(num_classes, emb) if num_classes else None
        options: dict[str, Any] = dict(head_channels=head_channels, dropout=dropout, resample_filter=resample_filter,
                                       res_balance=res_balance, attn_balance=attn_balance, clip_act=clip_act)

        def block(cin: int, cout: int, **kwargs) -> EDM2Block:
            return EDM2Block(cin, cout, emb, **options, **kwargs)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        c, skips = widths[0], []
        for level, width in enumerate(widths):
            res = f"{height >> level}x{height >> level}"
            if level == 0:
                self.enc[f"{res}_conv"] = MPConv(channels + 1, c, 3)
            else:
                self.enc[f"{res}_down"] = block(c, c, down=True)
            skips.append(c)
            for i in range(num_blocks):
                cin, c = c, width
                self.enc[f"{res}_block{i}"] = block(cin, c, attention=(height >> level) in attn_resolutions)
                skips.append(c)
        for level, width in reversed(list(enumerate(widths))):
            res = f"{height >> level}x{height >> level}"
            if level == len(widths) - 1:
                self.dec[f"{res}_in0"] = block(c, c, decoder=True, attention=True)
                self.dec[f"{res}_in1"] = block(c, c, decoder=True)
            else:
                self.dec[f"{res}_up"] = block(c, c, decoder=True, up=True)
            for i in range(num_blocks + 1):
                cin, c = c + skips.pop(), width
                attention = (height >> level) in attn_resolutions
                self.dec[f"{res}_block{i}"] = block(cin, c, decoder=True, attention=attention)
        self.out_conv = MPConv(c, channels, 3)

    def normalize_weights(self) -> None:
        """Normalise every layer's weight (Eq. 66), in place, unless it is normalised already."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.normalize_weight()

    def embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Embed noise level and class, (B, E); labels enter as one-hot vectors times sqrt(classes)."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            y = one_hot(labels, self.num_classes, emb) * math.sqrt(self.num_classes)
            emb = mp_sum(emb, self.emb_label(y), self.label_balance)
        return mp_silu(emb)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training:
            self.normalize_weights()
        emb = run_outside_autocast(self.embed, c_noise, labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # a constant channel in place of biases
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, EDM2Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            x = mp_cat(x, skips.pop(), self.concat_balance) if "block" in name else x
            x = module(x, emb)
        return run_outside_autocast(self.out_conv, x, self.out_gain)
