"""EDM's denoising loss (Karras et al., 2022, Eq. 2 and Table 1), for training a teacher.

L = E_{t,y,n} lambda(t) |D(y + t n, t) - y|^2, ln t ~ N(p_mean, p_std^2), n ~ N(0, I), lambda = (t^2 + sd^2) / (t sd)^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pidistill.core.tensors import like
from pidistill.files.datasets import ImageSet
from pidistill.models.denoiser import Denoiser
from pidistill.objectives.base import Objective


class EDM(Objective):
    """The loss of an image y is lambda(t) |D(y + t n, t) - y|^2, averaged over its elements.

    denoiser: D, which is trained.
    data: images y, and their labels where the denoiser has classes.
    p_mean, p_std: mean and standard deviation of ln t.
    """

    needs = "images"

    def __init__(self, denoiser: Denoiser, data: ImageSet, *, p_mean: float = -1.2, p_std: float = 1.2):
        super().__init__()
        self.denoiser, self.p_mean, self.p_std = denoiser, p_mean, p_std
        self.networks = {"teacher": denoiser}
        self.data = data

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        sample = self.data.sample(int(rng.integers(len(self.data))))
        if not self.denoiser.num_classes:
            sample.pop("labels", None)
        return sample | {"ln_t": np.float32(self.p_mean + self.p_std * rng.standard_normal()),
                         "n": rng.standard_normal(self.denoiser.shape, dtype=np.float32)}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y, t = batch["y"], self.times(batch)
        weight = (t**2 + self.denoiser.sigma_data**2) / (t * self.denoiser.sigma_data) ** 2
        error = self.denoiser(y + like(t, y) * batch["n"], t, batch.get("labels")) - y
        return weight * error.square().flatten(1).mean(dim=1)

    def times(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["ln_t"].exp()
