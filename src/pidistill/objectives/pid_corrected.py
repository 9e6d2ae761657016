"""PID with a correction of what the student draws: data-free, and as good as the teacher where PID alone blurs.

A student that follows trajectories (Eq. 11) draws the mean of what it cannot tell apart. The correction (`_correction.py`)
looks at what it draws altogether, x_g = x_theta(z, eps). FreeFlow (CVPR 2026) joins the two in this way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, distributed

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast
from pidistill.objectives._correction import Correction, check_ranges
from pidistill.objectives._levels import GridLevels, LognormalLevels
from pidistill.objectives._stages import change
from pidistill.objectives.base import Batch, Part, Phase, Setup
from pidistill.objectives.pid import PID


class PIDCorrected(Correction, PID):
    """Two phases: the fake learns the student's images, then the student is trained by PID's loss and the correction.

    share: of the batch that is corrected; the rest has PID's loss. 1 is the correction alone.
    correction: `distribution_matching` or `score_identity`.
    alpha: of score_identity, 0.5 to 1.5 there.
    weight: of the correction, or, of `balanced` size, how large it is as a multiple of PID's; 1 by default.
    balanced: scale the correction so that its mean gradient at the image, over a microbatch of all processes, is `weight`
        times that of PID's loss at its prediction (FreeFlow). By default so it is where both gradients are there and no
        weight is given: unscaled, a correction is far too small beside PID's loss.
    weighting: `error`, w of the correction, or `none`, w = 1: Diff-Instruct with w(t) = t^2.
    levels: noise levels t of the correction: `grid`, uniform among the grid's times, or `lognormal`.
    fake_levels: of the fake's training; by default those of the correction.
    p_mean, p_std: of ln t, where levels are lognormal.
    level_min, level_max: levels below and above are not asked for; by default all are. Where the teacher was hardly trained,
        as EDM's at t < 0.02, its own errors would be what the student learns.
    fake_steps: steps of the fake for each of the student. A step of the run is one of the fake.
    warmup: steps before the student is corrected, in which the fake learns its images; with a share of 1 the student takes
        none until then.
    fake: its network: None for the teacher's, or one by description, {"name": ..., options}, or by a teacher's spec.
    fake_optimizer: settings of the fake that differ from the student's, such as {"lr": 2e-3}.

    first: a run of PID that comes before, in the same folder, from whose student this one starts: the settings that differ
        from those of this run, as nested mappings, such as {"train": {"steps": 350}, "optimizer": {"lr": 1e-2}}. Without it
        the student starts as `student.init` says.

    Other parameters: `PID`.
    """

    levers = "optimizer.lr, objective.weight or objective.share"
    differentiable = ("objective.correction=score_identity needs a teacher that can be differentiated; this one gives no "
                      "gradient: set objective.correction=distribution_matching")

    @classmethod
    def stages(cls, config: Any) -> list[Any]:
        options = dict(config.objective)
        first = options.pop("first", None)
        if first is None:
            return [config]
        common = inspect.signature(PID).parameters
        pid = {"name": "pid"} | {key: value for key, value in options.items() if key in common}
        student = {"init": "previous", "net": None, "width": 1.0}
        try:
            return [change(config, {"objective": pid}, first), change(config, {"objective": options, "student": student})]
        except ValidationError as error:
            key, why = error.errors()[0]["loc"], error.errors()[0]["msg"].lower()
            raise PidistillError(f"objective.first: {'.'.join(map(str, key))}: {why}") from None

    def __init__(self, setup: Setup, *, scheme: Any = "upwind", distance: Any = "l2", stop_gradient: bool = True,
                 balance: float = 0.0, floor: float = 1e-3, teacher_precision: Autocast | None = None, share: float = 0.5,
                 correction: Literal["distribution_matching", "score_identity"] = "distribution_matching",
                 alpha: float = 1.0, weight: float | None = None, balanced: bool | None = None,
                 weighting: Literal["error", "none"] = "error",
                 levels: Literal["grid", "lognormal"] = "grid", fake_levels: Literal["grid", "lognormal"] | None = None,
                 p_mean: float = -1.2, p_std: float = 1.2, level_min: float | None = None,
                 level_max: float | None = None, fake_steps: int = 1,
                 warmup: int = 0, fake: str | dict[str, Any] | None = None,
                 fake_optimizer: dict[str, Any] | None = None, first: dict[str, Any] | None = None):
        if first is not None:
            raise PidistillError("objective.first: a distillation makes two runs of it (`PIDCorrected.stages`)")
        PID.__init__(self, setup, scheme=scheme, distance=distance, stop_gradient=stop_gradient, balance=balance,
                     floor=floor, teacher_precision=teacher_precision)
        comparable = share < 1 and correction == "distribution_matching"
        if balanced is None:
            balanced = comparable and weight is None
        weight = 1.0 if weight is None else weight
        check_ranges({"share": (share, 0, 1), "weight": (weight, 0, math.inf), "p_std": (p_std, 0, math.inf),
                      "fake_steps": (fake_steps, 0, math.inf), "level_min": (level_min or 1, 0, math.inf),
                      "level_max": (level_max or 1, 0, math.inf)})
        if balanced and not comparable:
            raise PidistillError("objective.balanced=true compares the gradients of distribution_matching with those of "
                                 "PID's loss, and needs both: set objective.share below 1, and leave score_identity out")
        self.share, self.weight, self.balanced, self.by_error = share, weight, balanced, weighting == "error"
        self.score_identity, self.alpha = correction == "score_identity", alpha
        bounds = GridLevels(setup, level_min, level_max)  # which also refuses those that leave no levels
        kinds = {"grid": bounds, "lognormal": LognormalLevels(setup, p_mean, p_std, level_min, level_max)}
        self.prepare_correction(setup, kinds[levels], kinds[fake_levels or levels], fake, fake_optimizer, fake_steps, warmup)
        self.pull: tuple[int, Tensor] | None = None  # a step, and (sum, count) of the sizes of PID's gradients in it

    @classmethod
    def asks_for_gradient(cls, options: Mapping[str, Any]) -> bool:
        return options.get("correction") == "score_identity" or super().asks_for_gradient(options)

    def phases(self) -> list[Phase]:
        corrected = Part("correction", self.share, self.draw_correction, self.correct)
        followed = [Part("pid", 1 - self.share, self.draw, self.follow)] if self.share < 1 else []
        return [self.make_fake_phase(), Phase("student", ("student",), every=self.fake_steps,
                                              first=0 if followed else self.warmup, parts=(*followed, corrected))]

    def follow(self, batch: Batch, step: int = 0) -> Tensor:
        """PID's loss, (B,), whose gradient is measured where the correction is to be as large."""
        prediction, target = self.compute_sides(batch)
        e = self.compare(prediction, target)
        if self.balanced and e.requires_grad:
            incoming: list[Tensor] = []  # what the trainer multiplies the loss by
            e.register_hook(lambda g: incoming.append(g.mean()))
            prediction.register_hook(lambda g: self.measure_pull(step, g / incoming[-1]))
        return e

    def measure_pull(self, step: int, g: Tensor) -> None:
        """Add the sizes of PID's gradients at its prediction, (B, ...), to those of this step."""
        pair = torch.stack([g.abs().flatten(1).mean(dim=1).sum(), g.new_tensor(len(g))])
        known = self.pull[1] if self.pull and self.pull[0] == step else 0
        self.pull = step, pair + known

    def find_weight(self, step: int, g: Tensor) -> float | Tensor:
        """Find the weight of the correction, whose gradients at the images are g (B, ...)."""
        if not self.balanced or self.pull is None or self.pull[0] != step or not torch.is_grad_enabled():
            return self.weight
        size = g.abs().flatten(1).mean(dim=1)
        pairs = torch.stack([self.pull[1], torch.stack([size.sum(), size.new_tensor(len(size))])])
        if distributed.is_initialized():
            distributed.all_reduce(pairs)
        (pid, samples), (own, corrected) = pairs
        return self.weight * (pid / samples) / (own / corrected).clip(1e-20)

    def forget(self) -> None:
        super().forget()
        self.pull = None

    def times(self, batch: Batch) -> Tensor:
        return batch["t"] if "t" in batch else PID.times(self, batch)
