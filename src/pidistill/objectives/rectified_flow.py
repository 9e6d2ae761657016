"""Rectified Flow's reflow and distillation (Liu, Gong & Liu, 2023): straighten the teacher's flow, then jump along it.

The paper's flow goes from noise X_0 to an image X_1, dX/ds = v(X, s); reflow fits a new one to the old one's pairs (Eq. 1):

    L = E_s |(X_1 - X_0) - v(X_s, s)|^2,    X_s = s X_1 + (1 - s) X_0,    s uniform in [0, 1].

Here X_1 = y is the solution that begins at the noise z at T, X_0 = z/(1 + T), and r = 1 - s is the share of the noise. With

    t = r T/(1 + T - r T),    x = (1 + t) X = (1 - t/T) y + (t/T) z,    v = (D(x, t) - X)/r

the flow's ODE is that of all teachers here, dx/dt = (x - D)/t, from x = z at T to y at 0, and a perfectly straight one has
D = y all along. In D the loss is |D(x, t) - y|^2 / r^2.

A distillation takes `reflows` stages of it, from pairs of the teacher (whose own flow is in the place of the paper's first
rectified flow), then of the student before; and at last `knowledge` on pairs of the last flow, which is the paper's
distillation, |X_1 - X_0 - v(X_0, 0)|^2 or LPIPS of the image.

As there: the pairs, their straight lines, uniform s, the start from the flow before, new pairs for every stage. Their noise
is new too: each stage's `pairs.seed` is one higher, so that no flow is followed from where it was fitted. The noise X_0 has
the standard deviation T/(1 + T), there 1, and s ends where t = eps. Left out: pairs that are drawn while training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import MAX_SEED
from pidistill.core.tensors import like
from pidistill.objectives._regression import SUCCESSION, check_denoiser, draw_pair, require_pairs
from pidistill.objectives._stages import change
from pidistill.objectives.base import Batch, Objective, Phase, Sample, Setup

MOST_REFLOWS = 10


class RectifiedFlow(Objective):
    """The loss of a pair of noise z and solution y is |D(x, t) - y|^2 / r^2, averaged over its elements.

    reflows: how often the flow is straightened, a stage each.
    distil: whether a stage of `knowledge` follows; or that stage's settings that differ from those of this run, as nested
        mappings, such as {"train": {"steps": 2000}, "objective": {"distance": "lpips"}}.
    """

    needs = "pairs"
    form = "denoiser"

    @classmethod
    def stages(cls, config: Any) -> list[Any]:
        options = dict(config.objective)
        reflows, distil = options.pop("reflows", 1), options.pop("distil", True)
        check_options(reflows, distil)
        reflow = {"objective": options | {"distil": False}}
        seed = config.train.seed if config.pairs.seed is None else config.pairs.seed
        on = [SUCCESSION | {"data": "teacher", "pairs": {"seed": (seed + k) % MAX_SEED}} for k in range(reflows + 1)]
        runs = [change(config, reflow, on[k] if k else {}) for k in range(reflows)]
        try:
            last = [change(config, {"objective": {"name": "knowledge"}}, on[-1], distil if isinstance(distil, dict) else {})]
        except ValidationError as error:
            key, why = error.errors()[0]["loc"], error.errors()[0]["msg"].lower()
            raise PidistillError(f"objective.distil: {'.'.join(map(str, key))}: {why}") from None
        return runs if distil is False else runs + last

    def __init__(self, setup: Setup, *, reflows: int = 1, distil: bool | dict[str, Any] = True):
        check_denoiser(setup, "rectified_flow")
        check_options(reflows, distil)
        self.data = require_pairs(setup, "rectified_flow")
        student = setup.student
        self.num_classes, self.t_min, self.t_max = student.num_classes, student.t_min, student.t_max
        self.known = None if setup.teacher.times is None else setup.teacher.times.numpy()
        super().__init__({"student": setup.student})

    def phases(self) -> list[Phase]:
        return [Phase("rectified_flow", ("student",), self.draw, self.loss)]

    def draw(self, rng: np.random.Generator, step: int = 0) -> Sample:
        least = self.share(self.t_min)
        r = least + (1 - least) * rng.random()
        t = np.clip(r * self.t_max / (1 + self.t_max - r * self.t_max), self.t_min, self.t_max)
        if self.known is not None:
            t = self.known[np.abs(np.log(self.known / t)).argmin()]
        return draw_pair(self.data, rng, self.num_classes) | {"t": np.float32(t)}

    def share(self, t: Any) -> Any:
        """Give the share r of the noise at t, a number or (B,): 1 at T, where x is the noise itself."""
        return t / (1 + t) * (1 + self.t_max) / self.t_max

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        z, y, t = batch["z"], batch["y"], batch["t"]
        x = y + like(t / self.t_max, y) * (z - y)
        D = self.networks["student"](x, t, batch.get("labels"))
        return (D - y).square().flatten(1).mean(dim=1) / self.share(t) ** 2

    def times(self, batch: Batch) -> Tensor:
        return batch["t"]


def check_options(reflows: Any, distil: Any) -> None:
    """Refuse numbers of reflows, and settings of the distillation, that mean nothing."""
    if not isinstance(reflows, int) or not 1 <= reflows <= MOST_REFLOWS:
        raise PidistillError(f"objective.reflows must be 1 to {MOST_REFLOWS}, got {reflows}")
    if not isinstance(distil, (bool, dict)):
        raise PidistillError(f"objective.distil must be true, false, or settings of that stage as a mapping, got {distil!r}")
