"""A small multilayer perceptron for low-dimensional toys: h <- h + W silu(h + A e), e an embedding of c_noise and class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.tensors import one_hot
from pidistill.nets.parts.times import TemporalConv, check_times, split_times


class MLP(nn.Module):
    """The network computes F(x, c_noise, labels) for data of any shape: (B, *shape), (B,), (B,) or None -> (B, *shape).

    c_noise enters each residual layer through sines and cosines of a few octaves, so that the network is smooth in t, which
    PID differentiates.

    width, depth: of the hidden layers, and their number.
    octaves: number of frequencies, from pi/4 upwards, each twice the one before.
    times: 2 for a network of two times, whose c_noise is (B, 2), t and s (`parts.times`).
    temporal: M, times of a trajectory that a layer after each residual layer mixes, 0 for none; the batch is (B M, ...), the
        M times of a sample side by side.
    """

    freqs: Tensor

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0, width: int = 128, depth: int = 3,
                 octaves: int = 4, times: int = 1, temporal: int = 0):
        super().__init__()
        check_times("mlp", times, temporal)
        features = math.prod(shape)
        self.num_classes, self.times, self.temporal = num_classes, times, temporal
        self.register_buffer("freqs", math.pi * 2.0 ** torch.arange(-2, octaves - 2), persistent=False)
        self.embed = nn.Linear(2 * octaves + 1 + num_classes, width)
        self.inp, self.out = nn.Linear(features, width), nn.Linear(width, features)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.affine = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList()
        if times == 2:
            last = nn.Linear(width, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.second.extend([nn.Linear(2 * octaves + 1, width), last])
        self.map_times = nn.ModuleList(TemporalConv(width, temporal) for _ in range(depth if temporal else 0))

    def expand(self, c: Tensor) -> list[Tensor]:
        """Give a time, its sines and its cosines, (B,) -> (B, 1), (B, octaves), (B, octaves)."""
        phase = torch.outer(c, self.freqs.to(c.dtype))
        return [c[:, None], phase.sin(), phase.cos()]

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        c_noise, s = split_times("mlp", x, c_noise, self.times, self.temporal)
        e = self.expand(c_noise)
        if self.num_classes:
            e.append(one_hot(labels, self.num_classes, x))
        emb = self.embed(torch.cat(e, dim=1))
        if s is not None:
            first, last = self.second
            emb = emb + last(F.silu(first(torch.cat(self.expand(s), dim=1))))
        emb = F.silu(emb)
        h = self.inp(x.flatten(1))
        for k, (layer, affine) in enumerate(zip(self.layers, self.affine)):
            h = h + layer(F.silu(h + affine(emb)))
            h = self.map_times[k](h) if self.temporal else h
        return self.out(h).reshape(x.shape)
