"""Knowledge Distillation (Luhman & Luhman, 2021): the student learns the teacher's solutions, drawn beforehand.

    L = E_z d(D_theta(z, T), y(z))        (Eq. 11, there with |a - b|^2 / 2)

z ~ N(0, T^2 I) is noise, y(z) the end of the teacher's trajectory that begins there, D_theta the teacher's denoiser of the
student's network, which begins as the teacher's and is asked at T alone.

As there: one regression on a fixed set of pairs, from the noise to the image in one call. L2 is the paper's; its released
code has L1 for CIFAR-10. Left out: that the pairs are rounded (noise to float16, images to bytes; `pairs.half` rounds ours),
and that the average with the smallest loss on other pairs is kept (`evaluate.keep_best` chooses by a metric).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pidistill.files.image_set import ImageSet
from pidistill.models.denoiser import Denoiser
from pidistill.objectives._regression import check_denoiser, draw_pair, require_pairs
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import make_distance


class Knowledge(Objective):
    """The loss of a pair of noise z and solution y is d(D(z, T), y).

    distance: a member of that family, by name or {"name": ..., options}.
    """

    needs = "pairs"
    form = "denoiser"

    @classmethod
    def plan_student(cls, teacher: Denoiser, options: Mapping[str, Any], data: ImageSet | None) -> dict[str, Any]:
        return {"form": cls.form, "times": (teacher.t_max, 0.0)}

    def __init__(self, setup: Setup, *, distance: Any = "l2"):
        check_denoiser(setup, "knowledge")
        self.data = require_pairs(setup, "knowledge")
        self.num_classes, self.t_max = setup.student.num_classes, setup.student.t_max
        super().__init__({"student": setup.student}, {"distance": make_distance(distance, setup.student.shape)})

    def phases(self) -> list[Phase]:
        return [Phase("knowledge", ("student",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        return draw_pair(self.data, rng, self.num_classes)

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        image = self.networks["student"](batch["z"], self.t_max, batch.get("labels"))
        return self.calls["distance"](image, batch["y"])

    def times(self, batch: Batch) -> Tensor:
        return batch["z"].new_full((len(batch["z"]),), self.t_max)
