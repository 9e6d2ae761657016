"""EDM's denoising loss (Karras et al., 2022, Eq. 2 and Table 1), for training a teacher.

L = E_{t,y,n} lambda(t) |D(y + t n, t) - y|^2, ln t ~ N(p_mean, p_std^2), n ~ N(0, I), lambda = (t^2 + sd^2) / (t sd)^2.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pidistill.core.tensors import like
from pidistill.objectives._images import draw_image
from pidistill.objectives.base import Batch, Objective, Phase, Sample, TeacherSetup


class EDM(Objective):
    """The loss of an image y is lambda(t) |D(y + t n, t) - y|^2, averaged over its elements.

    p_mean, p_std: mean and standard deviation of ln t.
    flip: every other image, by chance, is mirrored left to right: of what has no text and no left hand, twice as many.
    """

    setup = TeacherSetup
    needs = "images"
    averaged = ("teacher",)

    def __init__(self, setup: TeacherSetup, *, p_mean: float = -1.2, p_std: float = 1.2, flip: bool = False):
        super().__init__({"teacher": setup.denoiser})
        self.data, self.p_mean, self.p_std, self.flip = setup.data, p_mean, p_std, flip
        self.shape = setup.denoiser.shape
        self.conditional = setup.denoiser.num_classes > 0

    def phases(self) -> list[Phase]:
        return [Phase("edm", ("teacher",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = draw_image(self.data, rng, self.conditional, self.flip)
        return sample | {"ln_t": np.float32(self.p_mean + self.p_std * rng.standard_normal()),
                         "n": rng.standard_normal(self.shape, dtype=np.float32)}

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        y, t = batch["y"], self.times(batch)
        weight = (t**2 + self.sigma_data**2) / (t * self.sigma_data) ** 2
        error = self.networks["teacher"](y + like(t, y) * batch["n"], t, batch.get("labels")) - y
        return weight * error.square().flatten(1).mean(dim=1)

    def times(self, batch: Batch) -> Tensor:
        return batch["ln_t"].exp()
