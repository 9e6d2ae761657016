"""DINOv2 (Oquab et al., 2023), the vision transformer in whose features FD-DINOv2 is measured (Stein et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import quantise
from pidistill.files.downloads import fetch_published
from pidistill.files.entries import Leaf, is_named, name_values, rank_label
from pidistill.files.selection import load_chosen, split_entry
from pidistill.files.weights import Allowance, count_allowed_elements, read_contents
from pidistill.nets.features.base import IMAGENET_MEAN, IMAGENET_STD

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
PATCH, HEAD, INPUT_SIDE = 14, 64, 224  # pixels of a patch, channels of a head, pixels of the image that the network sees
OFFSET = 0.1  # what the original adds when it stretches its positions; it changes the features


def dinov2(rest: str) -> Dinov2:
    """Load the network with Meta's weights. rest: `FILE[,entry=NAME]`; without it torch.hub's cache has them, or gets
    them.
    """
    return load_dinov2(*split_entry(rest)) if rest else load_dinov2(
        fetch_published(DINOV2_URL, "DINOv2", "evaluate.features=dinov2:FILE"))


class LayerScale(nn.Module):
    """The layer multiplies each channel by a learned factor, before a residual is added."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """The layer lets tokens (B, N, width) attend to each other, in heads of 64 channels."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class Mlp(nn.Module):
    """The perceptron has one hidden layer, four times as wide, and maps every token of (B, N, width) by itself."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """The block maps tokens (B, N, width) to x + ls1 attention(norm1 x), and these to x + ls2 mlp(norm2 x)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp, self.ls1, self.ls2 = Attention(width), Mlp(width), LayerScale(width), LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Dinov2(nn.Module):
    """DINOv2 maps images (B, C, H, W) in [-1, 1], grey or RGB, to class tokens (B, width), by default of ViT-L/14.

    Its weights have the names of Meta's files. As in EDM2's evaluation, images are quantised, and resized with antialiasing.

    width, depth: channels of a token, and number of blocks.
    grid: positions a side that the network was trained with; they are stretched to those of 224 x 224 pixels.
    """

    distance = "fd_dinov2"  # name of the Frechet distance in its features

    def __init__(self, *, width: int = 1024, depth: int = 24, grid: int = 37):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the training; in the files
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.grid = grid

    def stretch_positions(self, side: int) -> Tensor:
        """Stretch the trained position embeddings to side x side, (1, 1 + side^2, width), as the original does."""
        if side == self.grid:
            return self.pos_embed
        class_position, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        maps = positions.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scale = (side + OFFSET) / self.grid
        maps = F.interpolate(maps, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([class_position, maps.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Turn normalised images (B, 3, S, S), S a multiple of 14, into class tokens (B, width)."""
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.stretch_positions(math.isqrt(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def features(self, x: Tensor) -> Tensor:
        x = quantise(x).expand(-1, 3, -1, -1).float() / 255
        x = F.interpolate(x, (INPUT_SIDE, INPUT_SIDE), mode="bicubic", antialias=True)
        return self((x - x.new_tensor(IMAGENET_MEAN).reshape(3, 1, 1)) / x.new_tensor(IMAGENET_STD).reshape(3, 1, 1))

    def layers(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]


def load_dinov2(path: Path, entry: str | None = None) -> Dinov2:
    """Load a network of any of Meta's sizes with plain MLPs (ViT-S, -B, -L), in evaluation mode; its weights say which.

    entry: of the file, as in `choose_weights`. Raises PidistillError in one line.
    """
    contents = read_contents(path)
    leaves = name_values(contents, path)
    sizes = {measure_vit(leaves, full[:-len("cls_token")], path) for full in leaves
             if full.endswith("cls_token") and is_named(full[:-len(".cls_token")], entry) and rank_label(full) is not None}
    if len(sizes) != 1:
        raise PidistillError(f"{path} is no DINOv2: cls_token and pos_embed were expected in it" if not sizes else
                             f"{path} holds networks of several sizes; name one with ,entry=NAME")
    width, depth, positions = sizes.pop()
    if min(width, depth, positions) < 1 or width % HEAD or math.isqrt(positions) ** 2 != positions:
        raise PidistillError(f"{path}: {width} channels, {depth} blocks and {positions} positions are no DINOv2's")
    with Allowance(count_allowed_elements(path), path):
        net = Dinov2(width=width, depth=depth, grid=math.isqrt(positions))
    load_chosen(net, path, "DINOv2", entry=entry, contents=contents)
    return net.eval()


def measure_vit(leaves: Mapping[str, Leaf], prefix: str, path: Path) -> tuple[int, int, int]:
    """Measure the network whose names begin with a prefix: its channels, blocks and positions."""
    names = [full[len(prefix):] for full in leaves if full.startswith(prefix)]
    try:
        width, positions = (leaves[f"{prefix}{name}"].value.shape[k] for name, k in (("cls_token", 2), ("pos_embed", 1)))
    except (KeyError, IndexError, AttributeError):
        raise PidistillError(f"{path} is no DINOv2: cls_token and pos_embed were expected in it") from None
    if any(".w12." in name or name.startswith("register_tokens") for name in names):
        raise PidistillError(f"{path}: ViT-g and networks with registers are not known; FD-DINOv2 is measured with ViT-L/14")
    return width, len({name.split(".")[1] for name in names if name.startswith("blocks.")}), positions - 1
