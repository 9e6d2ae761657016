"""Consistency Trajectory Models (Kim et al., 2024): a student that jumps from any time to any earlier one.

    x_t = y + t n,    x_u the teacher's ODE solved from x_t at t to u,    T >= t > u >= s >= eps
    est = G-(G(x_t, t, s), s, eps),    target = G-(G-(x_u, u, s), s, eps)
    L = d(est, target) + w_dsm |y - g(x_r, r, r)|^2 + w_adv (- D(est))                                  (Eq. 5, 8, 9 there)

G(x, t, s) = (s/t) x + (1 - s/t) g(x, t, s) is the student, G- the average of it that follows it, y an image, and D a
discriminator, trained by max(0, 1 - D(y)) + max(0, 1 + D(est)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import like
from pidistill.models.denoiser import Denoiser
from pidistill.objectives._discriminator import Discriminator
from pidistill.objectives._images import draw_image, require_images
from pidistill.objectives._ode_steps import SOLVERS
from pidistill.objectives.base import Batch, Follower, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import make_distance

GOLDEN = (math.sqrt(5) - 1) / 2   # its multiples fill [0, 1) evenly, however many are taken
P_MEAN, P_STD = -1.2, 1.2         # of ln t, as EDM's networks are trained
HIGH_LEVELS = 0.7                 # the part of the Karras grid, counted from T, that half of the denoising loss has
JUDGE = {"name": "adam", "lr": 2e-3, "betas": (0.0, 0.99), "weight_decay": 0.0}


class CTM(Objective):
    """The soft consistency loss, the denoising loss, and, from a step on, an adversarial loss.

    Faithful: both losses, where they are compared (at eps, after a jump of the average), the solver's walk along the grid,
    the times of the denoising loss (half lognormal, half of high levels), and on what the discriminator looks. As in the
    authors' code, all samples of a step are solved over the same number h of grid intervals, from t_i to t_{i+h}, and s is
    uniform among t_{i+h} ... t_N; h goes evenly through 1 ... ode_steps as steps go by, where theirs is drawn.
    Left out: weights by the ratio of gradients at the last layer (Section 4), which take a backward pass each inside of the
    loss; weights are fixed. The discriminator is a small one of its own, without features of pretrained networks and
    augmentation (StyleGAN-XL's in the paper). Distances are those of the family, and squares are means over an image.

    solver: of the teacher's ODE, `heun` as in the paper, or `euler`.
    ode_steps: the most grid intervals that it takes from t to u; 17 in the paper for CIFAR-10, with grid.points=18. A
        grid that has fewer gives all of them.
    mu: decay rate of the average G-.
    distance: a member of the family, by name or {"name": ..., options}; `lpips` in the paper.
    dsm: weight of the denoising loss, 0 for none.
    dsm_weighting: over its times: `none` as in the paper, or `edm`, (t^2 + sd^2)/(t sd)^2, as in the authors' code.
    adversarial: weight of the adversarial loss, 0 for none.
    adversarial_start: the step in which it begins.
    discriminator_width: channels of the discriminator's first layer.
    discriminator_optimizer: settings of it that differ from Adam's with betas (0, 0.99) and a rate of 2e-3.
    r1: weight of the penalty r1/2 |grad D(y)|^2 (Mescheder et al., 2018), 0 for none.
    flip: every other image, by chance, is mirrored left to right.
    """

    needs = "images"
    form = "jump"

    @classmethod
    def plan_student(cls, teacher: Denoiser, options: Mapping[str, Any], data: Any) -> dict[str, Any]:
        return {"form": cls.form, "extension": {"times": 2}}

    def __init__(self, setup: Setup, *, solver: Literal["euler", "heun"] = "heun", ode_steps: int = 17, mu: float = 0.999,
                 distance: Any = "l2", dsm: float = 1.0, dsm_weighting: Literal["none", "edm"] = "none",
                 adversarial: float = 0.0, adversarial_start: int = 0, discriminator_width: int = 64,
                 discriminator_optimizer: dict[str, Any] | None = None, r1: float = 0.0, flip: bool = False):
        check_jump(setup)
        if not (0 <= mu < 1 and ode_steps >= 1 and discriminator_width >= 1 and adversarial_start >= 0):
            raise PidistillError("objective.mu must be 0 to 1, below 1, ode_steps and discriminator_width at least 1, and "
                                 f"adversarial_start at least 0, got {mu:g}, {ode_steps}, {discriminator_width} and "
                                 f"{adversarial_start}")
        if min(dsm, adversarial, r1) < 0:
            raise PidistillError(f"objective.dsm, adversarial and r1 must be at least 0, got {dsm:g}, {adversarial:g} and "
                                 f"{r1:g}")
        self.data, self.flip, self.grid = require_images(setup, "ctm"), flip, setup.grid
        self.solve, self.ode_steps = SOLVERS[solver], min(ode_steps, self.grid.points - 1)
        self.dsm, self.dsm_weighting, self.known = dsm, dsm_weighting, setup.teacher.times
        self.adversarial, self.adversarial_start, self.r1 = adversarial, adversarial_start, r1
        self.discriminator_optimizer: Mapping[str, Any] = JUDGE | (discriminator_optimizer or {})
        student = setup.student
        self.shape, self.conditional = student.shape, student.num_classes > 0
        self.t_min, self.t_max, self.rho = student.t_min, student.t_max, student.rho
        member = make_distance(distance, self.shape)
        super().__init__({"student": student}, {"teacher": setup.teacher, "distance": member},
                         {"target": Follower("student", lambda step: mu)})
        if adversarial:
            self.networks["discriminator"] = Discriminator(self.shape, student.num_classes, width=discriminator_width)

    def phases(self) -> list[Phase]:
        student = Phase("student", ("student",), self.draw, self.loss)
        if not self.adversarial:
            return [student]
        return [student, Phase("discriminator", ("discriminator",), self.draw_jump, self.discriminate,
                               optimizer=self.discriminator_optimizer, first=self.adversarial_start)]

    # Draws ----------------------------------------------------------------------------------------------------------------

    def count_intervals(self, step: int) -> int:
        """Give h, how many intervals of the grid the teacher's ODE is solved over in a step."""
        return 1 + int(self.ode_steps * ((0.5 + step * GOLDEN) % 1))

    def draw_jump(self, rng: np.random.Generator, step: int = 0) -> Sample:
        """Draw an image and its noise, i of t = t_i, and j of s = t_j, which is t_{i+h} or later."""
        sample = draw_image(self.data, rng, self.conditional, self.flip)
        h, N = self.count_intervals(step), self.grid.points
        i = int(rng.integers(N - h))
        return sample | {"i": np.int64(i), "j": np.int64(rng.integers(i + h, N)),
                         "n": rng.standard_normal(self.shape, dtype=np.float32)}

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = self.draw_jump(rng, step)
        if self.dsm:
            sample |= {"r": self.draw_level(rng), "m": rng.standard_normal(self.shape, dtype=np.float32)}
        return sample

    def draw_level(self, rng: np.random.Generator) -> np.float64:
        """Draw a level of the denoising loss: ln r ~ N(-1.2, 1.2^2), or, by half, uniform among the grid's high levels."""
        if rng.integers(2):
            power = 1 / self.rho
            first, last = self.t_max**power, self.t_min**power
            r = (first + HIGH_LEVELS * rng.random() * (last - first)) ** self.rho
        else:
            r = math.exp(P_MEAN + P_STD * rng.standard_normal())
        r = min(max(r, self.t_min), self.t_max)
        if self.known is not None:
            known = self.known.numpy()
            r = known[np.abs(np.log(known) - math.log(r)).argmin()]
        return np.float64(r)

    # Losses ---------------------------------------------------------------------------------------------------------------

    def find_time(self, i: Tensor) -> Tensor:
        """Find t_i, (B,) float64; past the end eps: a rehearsal's numbers may have been drawn for another step."""
        return self.grid.at(i.clamp(max=self.grid.points - 1))

    def solve_ode(self, x: Tensor, i: Tensor, h: int, labels: Tensor | None) -> Tensor:
        """Solve the teacher's ODE from x (B, C, H, W) at t_i over h intervals of the grid. i: (B,)."""
        for k in range(h):
            x = self.solve(self.calls["teacher"], x, self.find_time(i + k), self.find_time(i + k + 1), labels)
        return x

    def jump_to_end(self, x: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Let the average jump from x (B, C, H, W) at s (B,) to eps, where states are compared."""
        return self.copies["target"](x, s, labels, self.t_min)

    def estimate(self, batch: Batch) -> Tensor:
        """Compute est, where the student's jumps from t_i to t_j end, (B, C, H, W)."""
        y, t, s, labels = batch["y"], self.times(batch), self.grid.at(batch["j"]), batch.get("labels")
        return self.jump_to_end(self.networks["student"](y + like(t, y) * batch["n"], t, labels, s), s, labels)

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        y, i, labels, h = batch["y"], batch["i"], batch.get("labels"), self.count_intervals(step)
        t, u, s = self.grid.at(i), self.find_time(i + h), self.grid.at(batch["j"])
        est = self.estimate(batch)
        with torch.no_grad():
            x = self.solve_ode(y + like(t, y) * batch["n"], i, h, labels)
            target = self.jump_to_end(self.copies["target"](x, u, labels, s), s, labels)
        loss = self.calls["distance"](est, target)
        if self.dsm:
            loss = loss + self.dsm * self.denoise(batch)
        if self.adversarial:
            # Computed before it begins, too: memory that was found to be enough in the first step stays so.
            weight = self.adversarial if step >= self.adversarial_start else 0.0
            loss = loss - weight * self.networks["discriminator"](est, labels)
        return loss

    def denoise(self, batch: Batch) -> Tensor:
        """Compute the denoising loss w(r) |y - g(y + r m, r, r)|^2, (B,), the mean over an image."""
        y, r = batch["y"], batch["r"]
        student: Any = self.networks["student"]
        error = (student.g(y + like(r, y) * batch["m"], r, r, batch.get("labels")) - y).square().flatten(1).mean(dim=1)
        if self.dsm_weighting == "none":
            return error
        return ((r**2 + self.sigma_data**2) / (r * self.sigma_data) ** 2).to(error) * error

    def discriminate(self, batch: Batch, step: int = 0) -> Tensor:
        """Compute the discriminator's loss, (B,): max(0, 1 - D(y)) + max(0, 1 + D(est)), and the penalty."""
        y, labels, D = batch["y"], batch.get("labels"), self.networks["discriminator"]
        with torch.no_grad():
            est = self.estimate(batch)
        y = y.detach().requires_grad_(self.r1 > 0)
        real, fake = D(y, labels), D(est, labels)
        self.note("discriminator/real", real)
        self.note("discriminator/fake", fake)
        loss = (1 - real).relu() + (1 + fake).relu()
        if self.r1 and torch.is_grad_enabled():
            gradient, = torch.autograd.grad(real.sum(), y, create_graph=True)
            loss = loss + self.r1 / 2 * gradient.square().flatten(1).sum(dim=1)
        return loss

    def times(self, batch: Batch) -> Tensor:
        return self.grid.at(batch["i"])


def check_jump(setup: Setup) -> None:
    """Refuse a student that cannot be asked for the state at a second time. Raises PidistillError."""
    if setup.student.form != "jump":
        raise PidistillError(f"ctm trains jumps G(x, t, s); the student's form is {setup.student.form}")
    if getattr(setup.student.net, "times", 2) != 2:
        raise PidistillError("ctm needs a network that is told two times, t and s, and this one is told one; set "
                             "student.net={name: song_unet, times: 2}, or another that has `times`")
