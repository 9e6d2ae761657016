"""U-Net of Song et al. (2021) as configured by Karras et al. (2022): DDPM++ and NCSN++.

Parameter and buffer names and shapes are those of NVIDIA's EDM checkpoints, so that their weights load by name.
The code is our own; its layers, which `dhariwal_unet` shares, are in `pidistill.nets.parts`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.registry import suggest_choices
from pidistill.core.tensors import one_hot, run_outside_autocast
from pidistill.nets.parts import native
from pidistill.nets.parts.embeddings import FourierEmbedding, PositionalEmbedding
from pidistill.nets.parts.initialisation import xavier
from pidistill.nets.parts.times import SecondTime, check_times, make_temporal_layers, mix_times, split_times
from pidistill.nets.parts.unet import SONG, Conv2d, Linear, UNetBlock, check_image_size, make_group_norm

DDPMPP = dict(embedding="positional", encoder="standard", resample_filter=(1, 1), channel_mult_noise=1)
NCSNPP = dict(embedding="fourier", encoder="residual", resample_filter=(1, 3, 3, 1), channel_mult_noise=2)


class SongUNet(nn.Module):
    """Song's network computes F(x, c_noise, labels): (B, C, H, W), (B,), (B,) int64 or None -> (B, C_out, H, W).

    The defaults are DDPM++; `**NCSNPP` gives NCSN++ (Karras et al., 2022, Appendix C.2 and Table 7). Under autocast the
    embedding and the last layers stay in float32: PID multiplies the rounding of a difference of F between neighbouring
    times by 30 to 120.

    shape: of an image, (C, H, W); H and W must be multiples of patch * 2^(levels - 1), and H names the blocks and places
        attention.
    out_channels: C_out, by default C.
    model_channels, channel_mult: width, and its factor at each level, the finest first.
    channel_mult_emb, channel_mult_noise: widths, in model_channels, of the embedding and of what it is made from.
    num_blocks, attn_resolutions: residual blocks at each level, and the heights at which they have attention.
    embedding: of the noise level, `positional` or `fourier`.
    encoder, decoder: how the image goes beside the blocks: `standard` not at all, `skip`, or `residual` (encoder alone).
    resample_filter: taps of the filter between two levels.
    augment_dim: numbers of EDM's augmentation label, whose layer is in the checkpoints and unused here.
    patch: patch x patch pixels are folded into channels at the input and unfolded at the output: for the same width and
        parameters a network with patch 2 costs about a quarter (not in EDM, whose networks have patch 1).
    times: 2 for a network of two times, whose c_noise is (B, 2), t and s (`parts.times`).
    temporal: M, times of a trajectory that a layer after each residual block mixes, 0 for none; the batch is (B M, ...), the
        M times of a sample side by side.
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0, out_channels: int | None = None,
                 model_channels: int = 128, channel_mult: Sequence[int] = (2, 2, 2), channel_mult_emb: int = 4,
                 num_blocks: int = 4, attn_resolutions: Sequence[int] = (16,), dropout: float = 0.0,
                 embedding: str = "positional", channel_mult_noise: int = 1, encoder: str = "standard",
                 decoder: str = "standard", resample_filter: Sequence[int] = (1, 1), augment_dim: int = 0,
                 patch: int = 1, times: int = 1, temporal: int = 0):
        super().__init__()
        check_times("song_unet", times, temporal)
        for what, name, known in (("embedding", embedding, ["positional", "fourier"]),
                                  ("encoder", encoder, ["standard", "skip", "residual"]),
                                  ("decoder", decoder, ["standard", "skip"])):
            if name not in known:
                raise suggest_choices(f"song_unet {what}", name, known)
        channels, height = check_image_size("song_unet", shape, patch << (len(channel_mult) - 1))
        self.num_classes, self.patch, self.times, self.temporal = num_classes, patch, times, temporal
        resolution, in_channels = height // patch, channels * patch**2
        out_channels = (out_channels or channels) * patch**2
        noise, emb = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        embed = {"positional": PositionalEmbedding, "fourier": FourierEmbedding}[embedding]
        self.map_noise = embed(noise)
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
                self.dec[f"{res}_aux_norm"] = make_group_norm(c, SONG.eps)
                self.dec[f"{res}_aux_conv"] = Conv2d(c, out_channels, 3, init=xavier(1e-5))
        # Last, so that the draws of all other weights stay as they are.
        self.map_second = SecondTime(embed(noise), noise, emb) if times == 2 else None
        self.map_times = make_temporal_layers(self.enc, self.dec, temporal)

    def embed(self, c_noise: Tensor, labels: Tensor | None, second: Tensor | None = None) -> Tensor:
        """Embed noise level, class and second time, (B, E); labels enter as one-hot vectors times sqrt(classes)."""
        emb = self.map_noise(c_noise)
        if self.map_label is not None:  # its bias belongs to "no label" too
            emb = emb + self.map_label(one_hot(labels, self.num_classes, emb) * math.sqrt(self.num_classes))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_second is not None:
            emb = emb + self.map_second(second)
        return F.silu(emb)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        c_noise, second = split_times("song_unet", x, c_noise, self.times, self.temporal)
        emb = run_outside_autocast(self.embed, c_noise, labels, second)
        x = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if "aux_down" in name:
                aux = module(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + module(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + module(aux)) * SONG.skip_scale
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                x = mix_times(self.map_times, f"enc_{name}", x)
                skips.append(x)
        out: Tensor | None = None
        for name, module in self.dec.items():
            if "aux_up" in name:
                assert out is not None
                out = run_outside_autocast(module, out)
            elif "aux_norm" in name:
                h = run_outside_autocast(functools.partial(native.norm_silu, norm=cast(nn.GroupNorm, module)), x)
            elif "aux_conv" in name:
                y = run_outside_autocast(module, h)
                out = y if out is None else y + out
            else:
                if "block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = mix_times(self.map_times, f"dec_{name}", module(x, emb))
        assert out is not None
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out
