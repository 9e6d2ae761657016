"""Layers of transformers over the patches of an image, (B, N, D): positions, and blocks with an injection u.

    z <- z + W_o softmax(q k^T / sqrt(d)) v,   q, k, v = W LN(z) + u       attention, its heads of d = D / heads channels
    z <- z + W_2 gelu(W_1 LN(z))

The code is our own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.nets.parts.unet import Linear


class InjectedBlock(nn.Module):
    """The block attends over tokens, and is told u by its queries, keys and values: (B, N, D), (B, N, 3 D) -> (B, N, D).

    u may be one for all tokens, (B, 1, 3 D).

    width: D. heads: of attention, which divide it.
    expansion: width of the hidden layer of the second branch, in D.
    """

    def __init__(self, width: int, heads: int, expansion: int):
        super().__init__()
        self.heads = heads
        self.norm0, self.norm1 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)
        self.hidden, self.out = Linear(width, expansion * width), Linear(expansion * width, width)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        q, k, v = (self.qkv(self.norm0(z)) + u).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        z = z + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return z + self.out(F.gelu(self.hidden(self.norm1(z)), approximate="tanh"))


def embed_positions(height: int, width: int, channels: int) -> Tensor:
    """Give sines and cosines of the rows, then of the columns, of patches, (height * width, channels).

    Their frequencies go from 1 down to 1/10000, channels/4 of them for each; channels must be a multiple of 4.
    """
    freqs = 10000.0 ** (-torch.arange(channels // 4) / (channels // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phases = [place.reshape(-1, 1) * freqs for place in (rows, columns)]
    return torch.cat([part for phase in phases for part in (phase.sin(), phase.cos())], dim=1)
