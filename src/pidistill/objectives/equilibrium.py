"""One-step distillation with a Generative Equilibrium Transformer, Geng, Pokle & Kolter (2023): noise to image by pairs.

    L = E_z d( F_theta(z), x(0) )

F_theta is the network `equilibrium`, which looks at noise and class alone, and x(0) the teacher's solution for z, which the
pairs hold. Faithful: the loss (L1; the paper has LPIPS too), the network up to a layer normalisation (`nets/equilibrium`),
and that there are no data, no second stage and no call of the teacher in training. The noise reaches the network as
c_in(T) z, of unit variance, as the paper's does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build_from_config
from pidistill.files.pairs import Pairs
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup
from pidistill.objectives.distances.base import Distance


class Equilibrium(Objective):
    """The loss of a pair is the distance of the student's image from the teacher's solution for the same noise.

    distance: a member of that family, by name or {"name": ..., options}.

    Raises PidistillError for a student with another network than one that does not look at the time: the objective is named
    for that network.
    """

    needs = "pairs"
    form = "direct"

    def __init__(self, setup: Setup, *, distance: Any = "l1"):
        student = setup.student
        if student.form != self.form or getattr(student.net, "timeless", False) is not True:
            raise PidistillError("the objective equilibrium trains the network of that name: student.init=random and "
                                 f"student.net=equilibrium; the student's is {student.net_spec['name']}")
        if not isinstance(setup.data, Pairs):
            raise PidistillError("the objective equilibrium needs pairs of noise and the teacher's solution")
        self.data = setup.data
        member: Distance = build_from_config("distances", distance)
        if hasattr(member, "check"):
            member.check(student.shape)
        super().__init__({"student": student}, {"distance": member})

    def phases(self) -> list[Phase]:
        return [Phase("equilibrium", ("student",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        sample = self.data.sample(int(rng.integers(len(self.data))))
        sample.pop("states", None)
        return sample

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        student: Any = self.networks["student"]
        return self.calls["distance"](student.generate(batch["z"], batch.get("labels")), batch["y"])
