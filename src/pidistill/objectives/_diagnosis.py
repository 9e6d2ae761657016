"""A run with a correction tells whether it converges, which losses that swing around 0 do not.

Everything is measured on seeds and draws that no training has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.core.seeds import labels_of, stream
from pidistill.core.tensors import find_device
from pidistill.models.samplers.base import sample_teacher
from pidistill.objectives.base import Batch, Part

SEEDS = range(1_000_000, 1_000_128)
KEY = 2**62  # of the draws; a run's are below it
COMPARED = 32  # samples whose gradients are
COLLAPSE = 0.8  # of the teacher's spread; a student of the digits that draws as well as its teacher has 0.97 to 1.02


class Diagnosis:
    """Measures a corrected student against its teacher, and warns where it collapses.

    rms_to_teacher: root mean square distance of its images to the teacher's solutions for the same noise.
    spread: standard deviation of its images over that of the teacher's, the mean over all places; below 1 where the student
        draws fewer different images.
    fake/student, fake/teacher: the fake's denoising loss on the student's images and, for the same levels and noises, on the
        teacher's: they are as large as each other where the student draws what the teacher draws.
    alignment: cosine between the gradients of PID's loss and of the correction; below 0 they pull apart.

    objective: of the run, a `Correction`. It is called on the main process, whose networks are whole.
    """

    def __init__(self, objective: Any):
        self.objective = objective
        self.solutions: Tensor | None = None
        self.labels = labels_of(SEEDS, objective.num_classes)
        self.warned = False

    def __call__(self, student: Any) -> dict[str, float]:
        """Measure an averaged student, and the objective's networks as they are."""
        if self.solutions is None:
            self.solutions = sample_teacher(self.objective.teacher, SEEDS, self.labels, decode=False)
        images = student.sample(SEEDS, self.labels, clip=False, decode=False)
        spread = (images.std(dim=0).mean() / self.solutions.std(dim=0).mean()).item()
        found = {"rms_to_teacher": (images - self.solutions).square().mean().sqrt().item(), "spread": spread}
        if spread < COLLAPSE and not self.warned:
            processes.say(f"WARNING: the student's images spread {spread:.2f} times as far as the teacher's: the correction "
                          f"collapses. Lower {self.objective.levers}, or let the fake follow better: raise "
                          "objective.fake_steps, or lr in objective.fake_optimizer")
        self.warned = spread < COLLAPSE
        networks = self.objective.networks.values()
        for network in networks:
            network.eval()  # statistics of batches stay as they are
        try:
            return found | self.measure_fake(images) | self.measure_alignment()
        finally:
            for network in networks:
                network.train()

    @torch.no_grad()
    def measure_fake(self, images: Tensor) -> dict[str, float]:
        """Measure the fake's loss on the student's images and on the teacher's, each (N, C, H, W)."""
        assert self.solutions is not None
        fake = self.objective.phases()[0].parts[0]
        batch = draw(fake, 0, len(images), find_device(self.objective.networks["fake"]))
        y = {} if self.labels is None else {"labels": self.labels.to(batch["t"].device)}
        return {f"fake/{name}": self.objective.denoise(drawn.to(batch["t"].device), batch | y).mean().item()
                for name, drawn in (("student", images), ("teacher", self.solutions))}

    def measure_alignment(self) -> dict[str, float]:
        """Measure the cosine between the gradients of the two parts of the student's phase; nothing where there is one."""
        objective, phase = self.objective, self.objective.phases()[1]
        student, fake = objective.networks["student"], objective.networks["fake"]
        if len(phase.parts) < 2:
            return {}
        parameters = [p for p in student.parameters() if p.requires_grad]
        notes, pull = dict(objective.notes), objective.pull
        gradients = []
        for part in phase.parts:
            loss = part.loss(draw(part, 1, COMPARED, find_device(fake)), objective.warmup).mean()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])
        objective.notes, objective.pull = notes, pull
        products = [sum((a * b).sum() for a, b in zip(one, other, strict=True))
                    for one, other in ((gradients[0], gradients[1]), *((g, g) for g in gradients))]
        dot, *squares = (float(product) for product in products)
        length = (squares[0] * squares[1]) ** 0.5
        return {"alignment": dot / length} if length else {}


def draw(part: Part, phase: int, count: int, device: torch.device) -> Batch:
    """Draw samples of a part that no run draws. phase: the number of its phase."""
    samples = [part.draw(stream(KEY, 0, k, phase=phase), 0) for k in range(count)]
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])).to(device) for key in samples[0]}
