"""A correction moves what a student draws to where its teacher finds it too rare, without data.

A second network, the *fake*, learns to denoise the student's own images x_g; where it disagrees with the teacher, at
x = x_g + t n, the student draws too much or too little. Two ways to learn from that, with D the teacher's answer, D_f the
fake's, and w = 1/mean|x_g - D(x, t)|, or 1:

    distribution matching   the gradient w (D_f - D)^T dx_g/dtheta                    Luo et al. (2023); Yin et al. (2024)
    score identity          the loss w (D - D_f)^T [(D - x_g) - alpha (D - D_f)]      Zhou et al. (2024)

The first asks for no gradient of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import like
from pidistill.models.denoiser import Denoiser, Preconditioned
from pidistill.models.labels import count_labels
from pidistill.models.student_init import silence_dropout
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.base import build_net, copy_own
from pidistill.objectives._diagnosis import Diagnosis
from pidistill.objectives._levels import Levels
from pidistill.objectives.base import Batch, Objective, Part, Phase, Sample, Setup

ADAM = {"name": "adam", "betas": (0.0, 0.999), "weight_decay": 0.0}  # as in SiD and its kin: no memory of an older student


class Correction(Objective):
    """What objectives with a correction share: draws, the fake with its phase, the correction's loss, the diagnosis.

    A subclass calls `prepare_correction` once it has its networks.

    score_identity: whether the second loss above is taken, or the first.
    alpha: of the second.
    weight: of the correction.
    by_error: whether w is as above, or 1.
    fake_steps: steps of the fake for each of the student. A step of the run is one of the fake.
    warmup: steps before the student is corrected, in which the fake learns its images.
    levers: the settings that are lowered against a collapse, in its warning.
    differentiable: how to go on with a teacher that cannot be differentiated, in the message that refuses it.
    """

    score_identity = False
    alpha = 1.0
    weight = 1.0
    by_error = False
    levers: ClassVar[str] = "optimizer.lr"
    differentiable: ClassVar[str] = ""

    def prepare_correction(self, setup: Setup, levels: Levels, fake_levels: Levels, fake: str | dict[str, Any] | None,
                           fake_optimizer: Mapping[str, Any] | None, fake_steps: int, warmup: int) -> None:
        """Make the fake, and keep what draws and losses ask for.

        setup: of the distillation.
        levels, fake_levels: noise levels of the correction, and of the fake's training.
        fake: its network, as `make_fake` takes it.
        fake_optimizer: settings of the fake that differ from ADAM and the run's.
        fake_steps, warmup: as above.
        """
        self.shape, self.num_classes, self.t_max = setup.student.shape, setup.student.num_classes, setup.student.t_max
        self.levels, self.fake_levels = levels, fake_levels
        self.fake_optimizer: Mapping[str, Any] = ADAM | dict(fake_optimizer or {})
        self.fake_steps, self.warmup = fake_steps, warmup
        self.networks["fake"] = make_fake(setup.teacher, fake)
        self.teacher, self.diagnosis = setup.teacher, Diagnosis(self)

    def make_fake_phase(self) -> Phase:
        """Make the phase of the fake, which comes before the student's, as in the papers."""
        return Phase("fake", ("fake",), self.draw_fake, self.imitate, optimizer=self.fake_optimizer)

    def phases(self) -> list[Phase]:
        corrected = Part("correction", 1.0, self.draw_correction, self.correct)
        return [self.make_fake_phase(),
                Phase("student", ("student",), every=self.fake_steps, first=self.warmup, parts=(corrected,))]

    # Draws ----------------------------------------------------------------------------------------------------------------

    def draw_image(self, rng: np.random.Generator, levels: Levels) -> Sample:
        """Draw what an image of the student's and a noisy copy of it are made of: z at T, label, n, and the level t."""
        sample: Sample = {} if not self.num_classes else {"labels": np.int64(rng.integers(self.num_classes))}
        sample |= {"z": rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.t_max),
                   "n": rng.standard_normal(self.shape, dtype=np.float32)}
        return sample | {"t": np.float32(levels.draw(rng))}

    def draw_correction(self, rng: np.random.Generator, step: int = 0) -> Sample:
        return self.draw_image(rng, self.levels)

    def draw_fake(self, rng: np.random.Generator, step: int = 0) -> Sample:
        return self.draw_image(rng, self.fake_levels)

    # Losses ---------------------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        """Draw the student's images x_g, (B, C, H, W), of a batch's noises and labels."""
        student: Any = self.networks["student"]
        x: Tensor = student.generate(batch["z"], batch.get("labels"))
        return x

    def imitate(self, batch: Batch, step: int = 0) -> Tensor:
        """The fake's loss, EDM's on the student's images: lambda(t) |D_f(x_g + t n, t) - x_g|^2, (B,)."""
        with torch.no_grad():
            x = self.generate(batch)
        return self.denoise(x, batch)

    def denoise(self, x: Tensor, batch: Batch) -> Tensor:
        """Compute the fake's denoising loss of images x (B, C, H, W), (B,), for the levels, noises and labels of a batch."""
        t = batch["t"]
        D = self.networks["fake"](x + like(t, x) * batch["n"], t, batch.get("labels"))
        weight = (t**2 + self.sigma_data**2) / (t * self.sigma_data) ** 2
        return weight * (D - x).square().flatten(1).mean(dim=1)

    def correct(self, batch: Batch, step: int = 0) -> Tensor:
        """The correction's loss, (B,): its gradient in the image is g/n, with g as above and n the numbers of an image."""
        t, labels, through = batch["t"], batch.get("labels"), self.score_identity
        image = self.generate(batch)
        if step < self.warmup:
            return 0 * image.flatten(1).mean(dim=1)
        with nullcontext() if through else torch.no_grad():
            x = image + like(t, image) * batch["n"]
            D, fake = self.call_teacher(x, t, labels), self.networks["fake"](x, t, labels)
        if through and torch.is_grad_enabled() and not D.requires_grad:
            raise PidistillError(self.differentiable)
        gap, error = (fake - D).detach().flatten(1).abs().mean(dim=1), (image - D).detach().flatten(1).abs().mean(dim=1)
        self.note_bands("gap", gap, t)
        w = like(1 / error.clip(1e-8) if self.by_error else torch.ones_like(error), image)
        if through:
            difference = D - fake
            loss = (w * difference * (D - image - self.alpha * difference)).flatten(1).mean(dim=1)
            return self.weight * loss
        g = (w * (fake - D)).detach()
        loss = 0.5 * (image - (image - g).detach()).square().flatten(1).mean(dim=1)  # its gradient in the image is g/n
        return self.find_weight(step, g / g[0].numel()) * loss

    def find_weight(self, step: int, g: Tensor) -> float | Tensor:
        """Find the weight of distribution matching in a step, whose gradients at the images are g (B, ...)."""
        return self.weight

    def diagnose(self, student: nn.Module) -> dict[str, float]:
        """Measure whether the student converges, see `Diagnosis`."""
        return self.diagnosis(student)

    def times(self, batch: Batch) -> Tensor:
        return batch["t"]


def check_ranges(options: Mapping[str, tuple[float, float, float]]) -> None:
    """Refuse options that are not above their lower bound, or above their upper one."""
    for key, (value, low, high) in options.items():
        if not low < value <= high:
            upper = f" and at most {high:g}" if high < math.inf else ""
            raise PidistillError(f"objective.{key} must be above {low:g}{upper}, got {value:g}")


def make_fake(teacher: Denoiser, named: str | dict[str, Any] | None) -> nn.Module:
    """Make the fake denoiser: a copy of the teacher without guidance, a network at random, or a copy of another teacher."""
    if isinstance(named, str) and ":" not in named and not named.startswith((".", "/")):
        named = {"name": named}
    other = load_teacher(named) if isinstance(named, str) else teacher
    facts = {name: getattr(teacher, name) for name in ("t_min", "t_max", "sigma_data", "rho")}
    if isinstance(named, dict):
        network = build_net(named, teacher.shape, teacher.num_classes, own=True)
        fake = Preconditioned(network, teacher.shape, teacher.num_classes, **facts)
    elif isinstance(other, Preconditioned):
        if (other.shape, other.num_classes) != (teacher.shape, teacher.num_classes):
            raise PidistillError(f"objective.fake: {named} gives {other.shape} in {other.num_classes} classes, the teacher "
                                 f"{teacher.shape} in {teacher.num_classes}")
        null = other.null_label
        fake = Preconditioned(copy_own(other.model, "objective.fake"), other.shape, count_labels(other.num_classes, null),
                              preconditioning=other.preconditioning.spec, null_label=null, **facts)
    else:
        raise PidistillError("the teacher has no network that the fake could start from; set objective.fake, such as "
                             "objective.fake={name: song_unet}, or a teacher's spec")
    silence_dropout(fake)
    fixed = {*getattr(fake.model, "frozen", ()), *(() if isinstance(named, dict) else getattr(other, "fixed", ()))}
    for key, p in fake.model.named_parameters():
        p.requires_grad_(key not in fixed)
    return fake.train()
