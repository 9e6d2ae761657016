"""U-Net of Song et al. (2021) as configured by Karras et al. (2022): DDPM++ and NCSN++.

Parameter and buffer names and shapes are those of NVIDIA's EDM checkpoints, so that their weights load by name.
The code is our own. Where EDM resamples with grouped (transposed) convolutions, the 2x2 box filter is computed
as what it is: average pooling and nearest-neighbour upsampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.errors import PidistillError
from pidistill.plugins import choices

DDPMPP = dict(embedding="positional", encoder="standard", resample_filter=(1, 1), channel_mult_noise=1)
NCSNPP = dict(embedding="fourier", encoder="residual", resample_filter=(1, 3, 3, 1), channel_mult_noise=2)

SKIP_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two unit-variance branches at 1
EPS = 1e-6


def _xavier(shape: Sequence[int], fan_in: int, fan_out: int, gain: float) -> nn.Parameter:
    """Xavier-uniform times `gain`; EDM starts output layers at 1e-5 and qkv at sqrt(0.2)."""
    return nn.Parameter((torch.rand(*shape) * 2 - 1) * math.sqrt(6 / (fan_in + fan_out)) * gain)


class Linear(nn.Module):
    """Affine map (B, in) -> (B, out) with EDM's initialisation."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, gain: float = 1.0):
        super().__init__()
        self.in_features = in_features
        self.weight = _xavier((out_features, in_features), in_features, out_features, gain)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Convolution with optional 2x resampling, (B, in, H, W) -> (B, out, H', W').

    kernel 0 resamples only. `fused` filters after the convolution instead of before it when going down
    (NCSN++'s residual input branch), which is another function, not merely another speed.
    """

    def __init__(self, cin: int, cout: int, kernel: int, *, up: bool = False, down: bool = False,
                 resample_filter: Sequence[int] = (1, 1), fused: bool = False, gain: float = 1.0):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel = cin, cout, kernel
        self.up, self.down, self.fused = up, down, fused
        self.box = tuple(resample_filter) == (1, 1)
        taps = kernel**2
        self.weight = _xavier((cout, cin, kernel, kernel), cin * taps, cout * taps, gain) if kernel else None
        self.bias = nn.Parameter(torch.zeros(cout)) if kernel else None
        self.resample_filter: Tensor
        if up or down:
            f = torch.tensor(resample_filter, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(f, f)[None, None] / f.sum() ** 2)

    def _resample(self, x: Tensor, pad: int) -> Tensor:
        """Halve or double H and W with the separable filter; `pad` is the zero padding of the filter."""
        if self.box:
            return F.avg_pool2d(x, 2) if self.down else F.interpolate(x, scale_factor=2, mode="nearest")
        c = x.shape[1]
        f = self.resample_filter.to(x.dtype).expand(c, 1, -1, -1)
        if self.down:
            return F.conv2d(x, f, groups=c, stride=2, padding=pad)
        return F.conv_transpose2d(x, f * 4, groups=c, stride=2, padding=pad)  # 4: each input feeds four outputs

    def forward(self, x: Tensor) -> Tensor:
        pad, f_pad = self.kernel // 2, 0
        if self.up or self.down:
            f_pad = (self.resample_filter.shape[-1] - 1) // 2
        if self.down and self.fused and self.weight is not None:
            return self._resample(F.conv2d(x, self.weight, self.bias, padding=pad + f_pad), 0)
        if self.up or self.down:
            x = self._resample(x, f_pad)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=pad)


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels each."""
    groups = max(min(32, channels // 4), 1)
    if channels % groups:
        raise PidistillError(f"song_unet: {channels} channels do not divide into {groups} groups; "
                             "choose model_channels and channel_mult so that every sum of two widths is a multiple of 32")
    return nn.GroupNorm(groups, channels, eps=EPS)


class UNetBlock(nn.Module):
    """Residual block with noise conditioning and optional one-head self-attention, (B, cin, H, W) -> (B, cout, H', W')."""

    def __init__(self, cin: int, cout: int, emb: int, *, up: bool = False, down: bool = False, attention: bool = False,
                 dropout: float = 0.0, resample_filter: Sequence[int] = (1, 1)):
        super().__init__()
        self.in_channels, self.out_channels, self.attention, self.dropout = cin, cout, attention, dropout
        resample: dict[str, Any] = dict(up=up, down=down, resample_filter=resample_filter)
        self.norm0 = group_norm(cin)
        self.conv0 = Conv2d(cin, cout, 3, **resample)
        self.affine = Linear(emb, cout)
        self.norm1 = group_norm(cout)
        self.conv1 = Conv2d(cout, cout, 3, gain=1e-5)
        self.skip = Conv2d(cin, cout, 1, **resample) if cin != cout or up or down else None
        if attention:
            self.norm2 = group_norm(cout)
            self.qkv = Conv2d(cout, cout * 3, 1, gain=math.sqrt(0.2))
            self.proj = Conv2d(cout, cout, 1, gain=1e-5)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training) if self.dropout else h)
        x = ((x if self.skip is None else self.skip(x)) + h) * SKIP_SCALE
        if self.attention:
            b, c, height, width = x.shape
            # EDM lays qkv out as (channel, which of q k v): channel c of q is output 3 c.
            q, k, v = self.qkv(self.norm2(x)).reshape(b, c, 3, height * width).permute(2, 0, 3, 1).contiguous()
            a = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
            x = (self.proj(a.transpose(1, 2).reshape(b, c, height, width)) + x) * SKIP_SCALE
        return x


class PositionalEmbedding(nn.Module):
    """Sinusoidal embedding (B,) -> (B, channels) of DDPM++, order (sin, cos)."""

    freqs: Tensor

    def __init__(self, channels: int, max_positions: int = 10000):
        super().__init__()
        exponent = torch.arange(channels // 2, dtype=torch.float32) / (channels // 2 - 1)
        self.register_buffer("freqs", (1 / max_positions) ** exponent, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = torch.outer(c_noise, self.freqs.to(c_noise.dtype))
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Random Fourier features (B,) -> (B, channels) of NCSN++, order (sin, cos); the frequencies are in the checkpoint."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = torch.outer(c_noise, 2 * math.pi * self.freqs.to(c_noise.dtype))
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class SongUNet(nn.Module):
    """F(x, c_noise, labels): (B, C, H, W), (B,), (B,) int64 or None -> (B, C_out, H, W).

    DDPM++ by default; `**NCSNPP` gives NCSN++ (Karras et al., 2022, Appendix C.2 and Table 7).
    shape is (C, H, W); H and W must be multiples of patch * 2^(levels - 1), and H names the blocks and places attention.
    `patch` > 1 folds patch x patch pixels into channels at the input and unfolds them at the output: for the same
    width and parameters a network with patch 2 costs about a quarter (not in EDM, whose networks have patch 1).
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0, out_channels: int | None = None,
                 model_channels: int = 128, channel_mult: Sequence[int] = (2, 2, 2), channel_mult_emb: int = 4,
                 num_blocks: int = 4, attn_resolutions: Sequence[int] = (16,), dropout: float = 0.0,
                 embedding: str = "positional", channel_mult_noise: int = 1, encoder: str = "standard",
                 decoder: str = "standard", resample_filter: Sequence[int] = (1, 1), augment_dim: int = 0,
                 patch: int = 1):
        super().__init__()
        for what, name, known in (("embedding", embedding, ["positional", "fourier"]),
                                  ("encoder", encoder, ["standard", "skip", "residual"]),
                                  ("decoder", decoder, ["standard", "skip"])):
            if name not in known:
                raise choices(f"song_unet {what}", name, known)
        if len(shape) != 3:
            raise PidistillError(f"song_unet needs images of shape (C, H, W), got {tuple(shape)}; use mlp")
        step = patch << (len(channel_mult) - 1)
        if shape[1] % step or shape[2] % step:
            raise PidistillError(f"song_unet: height and width must be multiples of {step}, got {shape[1]}x{shape[2]}")
        self.num_classes, self.patch = num_classes, patch
        resolution, in_channels = shape[1] // patch, shape[0] * patch**2
        out_channels = (out_channels or shape[0]) * patch**2
        noise, emb = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = {"positional": PositionalEmbedding, "fourier": FourierEmbedding}[embedding](noise)
        self.map_label = Linear(num_classes, noise) if num_classes else None
        self.map_augment = Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)

        def block(cin: int, cout: int, **kwargs) -> UNetBlock:
            return UNetBlock(cin, cout, emb, dropout=dropout, resample_filter=resample_filter, **kwargs)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        down: dict[str, Any] = dict(down=True, resample_filter=resample_filter)
        c, caux, skips = model_channels, in_channels, []
        for level, mult in enumerate(channel_mult):
            res = f"{resolution >> level}x{resolution >> level}"
            if level == 0:
                self.enc[f"{res}_conv"] = Conv2d(in_channels, c, 3)
            else:
                self.enc[f"{res}_down"] = block(c, c, down=True)
                if encoder == "skip":
                    self.enc[f"{res}_aux_down"] = Conv2d(caux, caux, 0, **down)
                    self.enc[f"{res}_aux_skip"] = Conv2d(caux, c, 1)
                elif encoder == "residual":
                    self.enc[f"{res}_aux_residual"] = Conv2d(caux, c, 3, fused=True, **down)
                    caux = c
            skips.append(c)
            for i in range(num_blocks):
                cin, c = c, model_channels * mult
                self.enc[f"{res}_block{i}"] = block(cin, c, attention=(resolution >> level) in attn_resolutions)
                skips.append(c)
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = f"{resolution >> level}x{resolution >> level}"
            if level == len(channel_mult) - 1:
                self.dec[f"{res}_in0"] = block(c, c, attention=True)
                self.dec[f"{res}_in1"] = block(c, c)
            else:
                self.dec[f"{res}_up"] = block(c, c, up=True)
            for i in range(num_blocks + 1):
                cin, c = c + skips.pop(), model_channels * mult
                attention = i == num_blocks and (resolution >> level) in attn_resolutions
                self.dec[f"{res}_block{i}"] = block(cin, c, attention=attention)
            if decoder == "skip" or level == 0:
                if decoder == "skip" and level < len(channel_mult) - 1:
                    self.dec[f"{res}_aux_up"] = Conv2d(out_channels, out_channels, 0, up=True,
                                                       resample_filter=resample_filter)
                self.dec[f"{res}_aux_norm"] = group_norm(c)
                self.dec[f"{res}_aux_conv"] = Conv2d(c, out_channels, 3, gain=1e-5)

    def embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Embedding (B, E) of noise level and class; labels enter as one-hot vectors times sqrt(classes)."""
        emb = self.map_noise(c_noise)
        if self.map_label is not None and labels is not None:
            one_hot = F.one_hot(labels, self.num_classes).to(emb.dtype)
            emb = emb + self.map_label(one_hot * math.sqrt(self.num_classes))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.embed(c_noise, labels)
        x = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if "aux_down" in name:
                aux = module(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + module(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + module(aux)) * SKIP_SCALE
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)
        out: Tensor | None = None
        for name, module in self.dec.items():
            if "aux_up" in name:
                out = module(out)
            elif "aux_norm" in name:
                h = F.silu(module(x))
            elif "aux_conv" in name:
                out = module(h) if out is None else module(h) + out
            else:
                if "block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = module(x, emb)
        assert out is not None
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out
