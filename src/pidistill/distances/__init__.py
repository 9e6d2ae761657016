"""Distances d(prediction, target) -> (B,). One file = one distance.

A distance is called with two (B, ...) tensors, is zero exactly where they are equal, and gives one value a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TINY = 1e-10  # LPIPS's: what is added to the norm of a position's features


class Perceptual(nn.Module):
    """LPIPS's distance over the maps of a feature network (Zhang et al., 2018, Eq. 1).

    Subclasses define `layers(x)`: images (B, C, H, W) in [-1, 1] -> maps (B, c, ...), float32. At every position the
    channels are scaled to unit length; the squared difference is weighted over channels, averaged over positions and
    summed over layers. Nothing here is trained, and no graph is kept for a target that needs no gradient.
    """

    normalize = True
    weights: Sequence[Tensor | None] | None = None  # (c,) for every layer; None weighs all channels 1

    def layers(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
            targets = [self.scaled(f) for f in self.layers(target)]
        distance = torch.zeros(len(prediction), device=prediction.device)
        weights = self.weights or [None] * len(targets)
        for f, g, w in zip(self.layers(prediction), targets, weights):
            e = (self.scaled(f) - g).square()
            e = e.sum(dim=1) if w is None else (e * w.reshape(-1, *[1] * (e.ndim - 2))).sum(dim=1)
            distance = distance + e.flatten(1).mean(dim=1)
        return distance

    def scaled(self, f: Tensor) -> Tensor:
        if not self.normalize:
            return f
        norm = f.square().sum(dim=1, keepdim=True).clamp_min(TINY**2).sqrt()  # clamped: sqrt has no slope at 0
        return f / (norm + TINY)
