"""U-Net of Dhariwal & Nichol (2021), known as ADM, as configured by Karras et al. (2022) for ImageNet-64.

Parameter and buffer names and shapes are those of NVIDIA's EDM checkpoints, so that their weights load by name.
The code is our own; its layers, which `song_unet` shares, are in `pidistill.nets.parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import one_hot, run_outside_autocast
from pidistill.nets.parts import native
from pidistill.nets.parts.embeddings import PositionalEmbedding
from pidistill.nets.parts.initialisation import normal, zeros
from pidistill.nets.parts.times import SecondTime, check_times, make_temporal_layers, mix_times, split_times
from pidistill.nets.parts.unet import ADM, Conv2d, Linear, UNetBlock, check_image_size, make_group_norm


class DhariwalUNet(nn.Module):
    """ADM's network computes F(x, c_noise, labels): (B, C, H, W), (B,), (B,) int64 or None -> (B, C_out, H, W).

    The defaults are the ImageNet-64 network (Karras et al., 2022, Table 7), whose dropout is 0.1; a student has none.
    Under autocast the embedding and the last layers stay in float32, for the reason that `song_unet` gives.

    shape: of an image, (C, H, W); H and W must be multiples of 2^(levels - 1), and H names the blocks and places attention.
    out_channels: C_out, by default C.
    model_channels, channel_mult: width, even, and its factor at each level, the finest first.
    channel_mult_emb: width of the embedding, in model_channels.
    num_blocks, attn_resolutions: residual blocks at each level, and the heights at which they have attention.
    augment_dim: numbers of EDM's augmentation label, whose layer is in the checkpoints and unused here.
    head_channels: channels of each attention head.
    times: 2 for a network of two times, whose c_noise is (B, 2), t and s (`parts.times`).
    temporal: M, times of a trajectory that a layer after each residual block mixes, 0 for none; the batch is (B M, ...), the
        M times of a sample side by side.
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0, out_channels: int | None = None,
                 model_channels: int = 192, channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_emb: int = 4,
                 num_blocks: int = 3, attn_resolutions: Sequence[int] = (32, 16, 8), dropout: float = 0.1,
                 augment_dim: int = 0, head_channels: int = ADM.head_channels, times: int = 1, temporal: int = 0):
        super().__init__()
        check_times("dhariwal_unet", times, temporal)
        if model_channels < 2 or model_channels % 2:
            raise PidistillError(f"dhariwal_unet: model_channels must be even and positive, got {model_channels}")
        if head_channels < 1:
            raise PidistillError(f"dhariwal_unet: head_channels must be 1 or more, got {head_channels}; ADM's is 64")
        channels, height = check_image_size("dhariwal_unet", shape, 1 << (len(channel_mult) - 1))
        self.num_classes, self.times, self.temporal = num_classes, times, temporal
        emb = model_channels * channel_mult_emb
        style = replace(ADM, head_channels=head_channels)
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False, cos_first=True)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, init=zeros) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb, init=style.init)
        self.map_layer1 = Linear(emb, emb, init=style.init)
        self.map_label = Linear(num_classes, emb, bias=False, init=normal) if num_classes else None

        def block(cin: int, cout: int, **kwargs) -> UNetBlock:
            return UNetBlock(cin, cout, emb, dropout=dropout, style=style, **kwargs)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        c, skips = model_channels * channel_mult[0], []
        for level, mult in enumerate(channel_mult):
            res = f"{height >> level}x{height >> level}"
            if level == 0:
                self.enc[f"{res}_conv"] = Conv2d(channels, c, 3, init=style.init)
            else:
                self.enc[f"{res}_down"] = block(c, c, down=True)
            skips.append(c)
            for i in range(num_blocks):
                cin, c = c, model_channels * mult
                self.enc[f"{res}_block{i}"] = block(cin, c, attention=(height >> level) in attn_resolutions)
                skips.append(c)
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = f"{height >> level}x{height >> level}"
            if level == len(channel_mult) - 1:
                self.dec[f"{res}_in0"] = block(c, c, attention=True)
                self.dec[f"{res}_in1"] = block(c, c)
            else:
                self.dec[f"{res}_up"] = block(c, c, up=True)
            for i in range(num_blocks + 1):
                cin, c = c + skips.pop(), model_channels * mult
                self.dec[f"{res}_block{i}"] = block(cin, c, attention=(height >> level) in attn_resolutions)
        self.out_norm = make_group_norm(c, style.eps)
        self.out_conv = Conv2d(c, out_channels or channels, 3, init=zeros)
        # Last, so that the draws of all other weights stay as they are.
        self.map_second = None
        if times == 2:
            embedding = PositionalEmbedding(model_channels, endpoint=False, cos_first=True)
            self.map_second = SecondTime(embedding, model_channels, emb)
        self.map_times = make_temporal_layers(self.enc, self.dec, temporal)

    def embed(self, c_noise: Tensor, labels: Tensor | None, second: Tensor | None = None) -> Tensor:
        """Embed noise level, class and second time, (B, E); the class enters after the second layer."""
        emb = self.map_layer1(F.silu(self.map_layer0(self.map_noise(c_noise))))
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot(labels, self.num_classes, emb))
        if self.map_second is not None:
            emb = emb + self.map_second(second)
        return F.silu(emb)

    def make_image(self, x: Tensor) -> Tensor:
        """Turn the last features into the output, (B, c, H, W) -> (B, C_out, H, W)."""
        return self.out_conv(native.norm_silu(x, self.out_norm))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        c_noise, second = split_times("dhariwal_unet", x, c_noise, self.times, self.temporal)
        emb = run_outside_autocast(self.embed, c_noise, labels, second)
        skips: list[Tensor] = []
        for name, module in self.enc.items():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            x = mix_times(self.map_times, f"enc_{name}", x)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = mix_times(self.map_times, f"dec_{name}", module(x, emb))
        return run_outside_autocast(self.make_image, x)
