"""A small multilayer perceptron for low-dimensional toys: h <- h + W silu(h + A e), e an embedding of c_noise and class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.tensors import one_hot


class MLP(nn.Module):
    """The network computes F(x, c_noise, labels) for data of any shape: (B, *shape), (B,), (B,) or None -> (B, *shape).

    c_noise enters each residual layer through sines and cosines of a few octaves, so that the network is smooth in t, which
    PID differentiates.

    width, depth: of the hidden layers, and their number.
    octaves: number of frequencies, from pi/4 upwards, each twice the one before.
    """

    freqs: Tensor

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0, width: int = 128, depth: int = 3,
                 octaves: int = 4):
        super().__init__()
        features = math.prod(shape)
        self.num_classes = num_classes
        self.register_buffer("freqs", math.pi * 2.0 ** torch.arange(-2, octaves - 2), persistent=False)
        self.embed = nn.Linear(2 * octaves + 1 + num_classes, width)
        self.inp, self.out = nn.Linear(features, width), nn.Linear(width, features)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.affine = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        phase = torch.outer(c_noise, self.freqs.to(c_noise.dtype))
        e = [c_noise[:, None], phase.sin(), phase.cos()]
        if self.num_classes:
            e.append(one_hot(labels, self.num_classes, x))
        emb = F.silu(self.embed(torch.cat(e, dim=1)))
        h = self.inp(x.flatten(1))
        for layer, affine in zip(self.layers, self.affine):
            h = h + layer(F.silu(h + affine(emb)))
        return self.out(h).reshape(x.shape)
