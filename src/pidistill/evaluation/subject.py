"""A subject is a model that is measured: it draws images, and counts its network's calls and the time that they take.

nfe = calls / batches, and images per second are images / seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.core.errors import ForeignError, words_of
from pidistill.evaluation.results import Measurement
from pidistill.models.denoiser import Denoiser
from pidistill.models.exported import Exported
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student import Student
from pidistill.nets.features.base import fingerprint


class Subject:
    """A model draws images; its seconds and its network's calls are added up.

    network: whose calls are counted.
    draw: (seeds, labels, images at a time) -> (B, C, H, W) on the CPU.
    settings: what makes the images what they are, for the record.
    model: whose memory is reckoned (`fit_batch_size`); by default the network.
    """

    def __init__(self, network: torch.nn.Module, draw: Callable[[Sequence[int], Tensor | None, int], Tensor],
                 settings: dict[str, Any], model: torch.nn.Module | None = None):
        self.network, self.draw, self.settings, self.model = network, draw, settings, model or network
        self.seconds, self.calls, self.batches, self.images, self.batch_size = 0.0, 0, 0, 0, 0

    @classmethod
    def of(cls, model: Student | Exported | Denoiser, sampler: Sampler | None = None) -> Subject:
        """Make a subject of a student, as it is or exported, or of a teacher with a sampler (by default Heun's)."""
        if isinstance(model, Student):
            student = model
            # So that earlier records stay valid.
            form: dict[str, Any] = {} if model.form == "trajectory" else {"form": model.form}
            form |= {"drawing_time": model.drawing_time} if model.drawing_time not in (model.t_min, model.t_max) else {}
            form |= {"times": model.times} if model.form == "operator" else {}
            return cls(model.net, lambda seeds, y, n: student.sample(seeds, y, batch_size=n, clip=False),
                       {"weights": fingerprint(model.net), **form}, model)
        if isinstance(model, Exported):
            exported = model
            return cls(model.net, lambda seeds, y, n: exported.sample(seeds, y, batch_size=n, clip=False),
                       {"weights": model.digest, "exported": True}, model)
        teacher, solver = model, sampler or Sampler()
        return cls(model, lambda seeds, y, n: sample_teacher(teacher, seeds, y, sampler=solver, batch_size=n),
                   {"weights": fingerprint(model), "teacher": model.spec, "sampler": str(solver)})

    def run(self, seeds: Sequence[int], labels: Tensor | None) -> Tensor:
        """Draw the images (len(seeds), C, H, W) of these seeds, on the CPU.

        The batch is halved, from now on, while the memory does not hold it; PidistillError if it does not hold one image.
        """
        hook = self.network.register_forward_hook(self._count)
        self.batch_size = min(self.batch_size or len(seeds), len(seeds))
        start = time.perf_counter()
        try:
            while True:
                calls = self.calls
                try:
                    images = self.draw(seeds, labels, self.batch_size)  # ends on the CPU, so the device has finished
                    break
                except torch.OutOfMemoryError as error:
                    if self.batch_size == 1:
                        raise ForeignError(f"the memory does not hold a single image ({words_of(error)})") from error
                    self.batch_size, self.calls = -(-self.batch_size // 2), calls
                    torch.cuda.empty_cache()
        finally:
            hook.remove()
        self.seconds += time.perf_counter() - start
        self.batches += -(-len(seeds) // self.batch_size)
        self.images += len(seeds)
        return images

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def state(self) -> Tensor:
        """Give the sums (4,) float64: seconds, calls, batches, images."""
        return torch.tensor([self.seconds, self.calls, self.batches, self.images], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Go on from the sums that `state` gave."""
        self.seconds, self.calls, self.batches, self.images = state[0].item(), *(int(n) for n in state[1:].tolist())

    def make_measurement(self, metrics: dict[str, float], settings: dict[str, Any]) -> Measurement:
        """Join the metrics of this subject's images with its speed over all processes, which draw side by side.

        metrics: numbers by key. settings: what makes them what they are, for the record. All processes must call it.
        """
        total = self.state()
        processes.add_up([total])
        seconds, calls, batches, images = total.tolist()
        seconds /= processes.get_world_size()
        return Measurement(round(calls / batches), images / seconds, seconds, metrics, settings)
