"""What is measured: a model that draws images, and how long and how often its network is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.evaluation.results import Measurement
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student import Student
from pidistill.nets.features.base import fingerprint


class Subject:
    """A model that draws images: how long it takes, and how often its network is called.

    draw: (seeds, labels, images at a time) -> (B, C, H, W) on the CPU. settings: what makes its images what they are.
    """

    def __init__(self, network: torch.nn.Module, draw: Callable[[Sequence[int], Tensor | None, int], Tensor],
                 settings: dict[str, Any], model: torch.nn.Module | None = None):
        self.network, self.draw, self.settings, self.model = network, draw, settings, model or network
        self.seconds, self.calls, self.batches, self.images, self.batch_size = 0.0, 0, 0, 0, 0

    @classmethod
    def of(cls, model: Student | Denoiser, sampler: Sampler | None = None) -> Subject:
        """A student, or a teacher with a sampler."""
        if isinstance(model, Student):
            student = model
            return cls(model.net, lambda seeds, y, n: student.sample(seeds, y, batch_size=n, clip=False),
                       {"weights": fingerprint(model.net)}, model)
        teacher, chosen = model, sampler or Sampler()
        return cls(model, lambda seeds, y, n: sample_teacher(teacher, seeds, y, sampler=chosen, batch_size=n),
                   {"weights": fingerprint(model), "teacher": model.spec, "sampler": str(chosen)})

    def run(self, seeds: Sequence[int], labels: Tensor | None) -> Tensor:
        """Images of these seeds; in smaller parts from now on, if the memory does not hold them at once."""
        hook = self.network.register_forward_hook(self._count)
        self.batch_size = min(self.batch_size or len(seeds), len(seeds))
        began = time.perf_counter()
        try:
            while True:
                calls = self.calls
                try:
                    images = self.draw(seeds, labels, self.batch_size)  # ends on the CPU, so the device has finished
                    break
                except torch.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise PidistillError("the memory does not hold a single image") from None
                    self.batch_size, self.calls = -(-self.batch_size // 2), calls
                    torch.cuda.empty_cache()
        finally:
            hook.remove()
        self.seconds += time.perf_counter() - began
        self.batches += -(-len(seeds) // self.batch_size)
        self.images += len(seeds)
        return images

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def state(self) -> Tensor:
        return torch.tensor([self.seconds, self.calls, self.batches, self.images], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        self.seconds, self.calls, self.batches, self.images = state[0].item(), *(int(n) for n in state[1:].tolist())

    def measurement(self, metrics: dict[str, float], settings: dict[str, Any]) -> Measurement:
        """Join the metrics of this subject's images with its speed over all processes, which draw side by side."""
        total = self.state()
        processes.add_up([total])
        seconds, calls, batches, images = total.tolist()
        seconds /= processes.size()
        return Measurement(round(calls / batches), images / seconds, seconds, metrics, settings)
