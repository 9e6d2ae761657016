"""Embeddings of noise levels: sines and cosines of c_noise times frequencies, fixed or random (Karras et al., 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PositionalEmbedding(nn.Module):
    """The embedding takes sines and cosines of frequencies from 1 to 1/max_positions, (B,) -> (B, channels).

    The order is (sin, cos), as in DDPM++. ADM has the order (cos, sin) and, with `endpoint=False`, frequencies that end one
    step before 1/max_positions.
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
    """The embedding of NCSN++ takes sines, then cosines, of random frequencies, (B,) -> (B, channels).

    The frequencies, normal with standard deviation `scale`, are in the checkpoint.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = torch.outer(c_noise, 2 * math.pi * self.freqs.to(c_noise.dtype))
        return torch.cat([phase.sin(), phase.cos()], dim=1)
