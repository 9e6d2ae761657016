"""Pairs of noise and solution in memory, and images of vectors, as objectives draw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.models.samplers.base import Sampler


class Held:
    """Tensors of N samples, by name: `y`, and `z` of pairs, (N, ...), and `labels`, (N,)."""

    def __init__(self, **tensors: Tensor | None):
        self.arrays = {key: value.detach().numpy() for key, value in tensors.items() if value is not None}
        self.shape, self.labels = self.arrays["y"].shape[1:], tensors.get("labels")
        self.num_classes = 0 if self.labels is None else int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.arrays["y"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return self

    def sample(self, index: int, flip: bool = False) -> dict[str, Any]:
        sample = {key: np.int64(value[index]) if key == "labels" else value[index] for key, value in self.arrays.items()}
        return sample | ({"y": np.ascontiguousarray(sample["y"][..., ::-1])} if flip else {})


@torch.inference_mode()
def solve_pairs(teacher: Any, num: int, seed: int, steps: int = 40) -> Held:
    """Draw pairs of a teacher: noise, and the end of its trajectory by Heun's method."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num, *teacher.shape, generator=generator) * teacher.t_max
    labels = torch.randint(teacher.num_classes, (num,), generator=generator) if teacher.num_classes else None
    sampler = Sampler("heun", steps)
    *_, (_, y) = sampler.integrate(teacher, z, sampler.times(teacher), labels)
    return Held(z=z, y=y, labels=labels)
