"""PID with a correction of what the student draws: data-free, and as good as the teacher where PID alone blurs.

A student that follows trajectories (Eq. 11) draws the mean of what it cannot tell apart. A second network, the *fake*,
learns to denoise the student's own images x_g = x_theta(z, eps); where it disagrees with the teacher, at x = x_g + t n, the
student draws too much or too little. Two ways to learn from that, with w = 1/mean|x_g - D(x, t)|, D the teacher's and D_f
the fake's:

    distribution_matching   the gradient w (D_f - D)^T dx_g/dtheta                    Luo et al. (2023); Yin et al. (2024)
    score_identity          the loss w (D - D_f)^T [(D - x_g) - alpha (D - D_f)]      Zhou et al. (2024)

The first asks for no gradient of the teacher. FreeFlow (CVPR 2026) joins it with PID's residual in this way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, distributed, nn

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast
from pidistill.core.tensors import like
from pidistill.models.denoiser import Denoiser, Preconditioned
from pidistill.models.labels import count_labels
from pidistill.models.student_init import silence_dropout
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.base import build_net, copy_own
from pidistill.objectives._diagnosis import Diagnosis
from pidistill.objectives.base import Batch, Part, Phase, Sample, Setup
from pidistill.objectives.pid import PID

BANDS = {"low": (0.0, 1.0), "middle": (1.0, 10.0), "high": (10.0, math.inf)}  # of t, in units of sigma_data
ADAM = {"name": "adam", "betas": (0.0, 0.999), "weight_decay": 0.0}  # as in SiD and its kin: no memory of an older student


class PIDCorrected(PID):
    """Two phases: the fake learns the student's images, then the student is trained by PID's loss and the correction.

    share: of the batch that is corrected; the rest has PID's loss. 1 is the correction alone.
    correction: `distribution_matching` or `score_identity`.
    alpha: of score_identity, 0.5 to 1.5 there.
    weight: of the correction, or, of `balanced` size, how large it is as a multiple of PID's; 1 by default.
    balanced: scale the correction so that its mean gradient at the image, over a microbatch of all processes, is `weight`
        times that of PID's loss at its prediction (FreeFlow). By default so it is where both gradients are there and no
        weight is given: unscaled, a correction is far too small beside PID's loss.
    weighting: `error`, w as above, or `none`, w = 1: Diff-Instruct with w(t) = t^2.
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
        super().__init__(setup, scheme=scheme, distance=distance, stop_gradient=stop_gradient, balance=balance, floor=floor,
                         teacher_precision=teacher_precision)
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
        self.share, self.weight, self.balanced, self.weighting = share, weight, balanced, weighting
        self.correction, self.alpha, self.warmup, self.fake_steps = correction, alpha, warmup, fake_steps
        self.levels, self.fake_levels, self.p_mean, self.p_std = levels, fake_levels or levels, p_mean, p_std
        self.fake_optimizer: Mapping[str, Any] = ADAM | (fake_optimizer or {})
        self.t_min, self.sigma_data = setup.student.t_min, setup.student.sigma_data
        times = setup.grid.t if setup.teacher.times is None else setup.teacher.times
        self.known = None if setup.teacher.times is None else setup.teacher.times.log().numpy()
        self.level_min, self.level_max = max(level_min or 0, self.t_min), min(level_max or math.inf, float(times.max()))
        self.asked = [float(t) for t in setup.grid.t if self.level_min <= t <= self.level_max]
        if not self.asked:
            raise PidistillError(f"objective.level_min={level_min} and level_max={level_max} leave no times of the grid")
        self.networks["fake"] = make_fake(setup.teacher, fake)
        self.teacher, self.diagnosis = setup.teacher, Diagnosis(self)
        self.pull: tuple[int, Tensor] | None = None  # a step, and (sum, count) of the sizes of PID's gradients in it

    def phases(self) -> list[Phase]:
        corrected = Part("correction", self.share, self.draw_correction, self.correct)
        followed = [Part("pid", 1 - self.share, self.draw, self.follow)] if self.share < 1 else []
        return [Phase("fake", ("fake",), self.draw_fake, self.imitate, optimizer=self.fake_optimizer),
                Phase("student", ("student",), every=self.fake_steps, first=0 if followed else self.warmup,
                      parts=(*followed, corrected))]

    # Draws ----------------------------------------------------------------------------------------------------------------

    def draw_image(self, rng: np.random.Generator, levels: str) -> Sample:
        """Draw what an image of the student's and a noisy copy of it are made of: z at T, label, n, and the level t."""
        sample: Sample = {} if not self.num_classes else {"labels": np.int64(rng.integers(self.num_classes))}
        sample |= {"z": rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.t_max),
                   "n": rng.standard_normal(self.shape, dtype=np.float32)}
        return sample | {"t": np.float32(self.draw_level(rng, levels))}

    def draw_level(self, rng: np.random.Generator, levels: str) -> float:
        """Draw a noise level that the teacher knows, from `level_min` to `level_max`."""
        if levels == "grid":
            return self.asked[rng.integers(len(self.asked))]
        ln_t = np.clip(self.p_mean + self.p_std * rng.standard_normal(), math.log(self.level_min), math.log(self.level_max))
        return math.exp(ln_t if self.known is None else self.known[np.abs(self.known - ln_t).argmin()])

    def draw_correction(self, rng: np.random.Generator, step: int = 0) -> Sample:
        return self.draw_image(rng, self.levels)

    def draw_fake(self, rng: np.random.Generator, step: int = 0) -> Sample:
        return self.draw_image(rng, self.fake_levels)

    # Losses ---------------------------------------------------------------------------------------------------------------

    def imitate(self, batch: Batch, step: int = 0) -> Tensor:
        """The fake's loss, EDM's on the student's images: lambda(t) |D_f(x_g + t n, t) - x_g|^2, (B,)."""
        with torch.no_grad():
            x = self.networks["student"](batch["z"], self.t_min, batch.get("labels"))
        return self.denoise(x, batch)

    def denoise(self, x: Tensor, batch: Batch) -> Tensor:
        """Compute the fake's denoising loss of images x (B, C, H, W), (B,), for the levels, noises and labels of a batch."""
        t = batch["t"]
        D = self.networks["fake"](x + like(t, x) * batch["n"], t, batch.get("labels"))
        weight = (t**2 + self.sigma_data**2) / (t * self.sigma_data) ** 2
        return weight * (D - x).square().flatten(1).mean(dim=1)

    def diagnose(self, student: nn.Module) -> dict[str, float]:
        """Measure whether the student converges, see `Diagnosis`."""
        return self.diagnosis(student)

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

    def correct(self, batch: Batch, step: int = 0) -> Tensor:
        """The correction's loss, (B,): its gradient in the image is g/n, with g as above and n the numbers of an image."""
        t, labels = batch["t"], batch.get("labels")
        image = self.networks["student"](batch["z"], self.t_min, labels)
        if step < self.warmup:
            return 0 * image.flatten(1).mean(dim=1)
        through = self.correction == "score_identity"
        with nullcontext() if through else torch.no_grad():
            x = image + like(t, image) * batch["n"]
            D, fake = self.call_teacher(x, t, labels), self.networks["fake"](x, t, labels)
        if through and torch.is_grad_enabled() and not D.requires_grad:
            raise PidistillError("objective.correction=score_identity needs a teacher that can be differentiated; this one "
                                 "gives no gradient: set objective.correction=distribution_matching")
        gap, error = (fake - D).detach().flatten(1).abs().mean(dim=1), (image - D).detach().flatten(1).abs().mean(dim=1)
        for name, (low, high) in BANDS.items():
            self.note(f"gap/{name}", gap, (t >= low * self.sigma_data) & (t < high * self.sigma_data))
        w = like(1 / error.clip(1e-8) if self.weighting == "error" else torch.ones_like(error), image)
        if through:
            difference = D - fake
            loss = (w * difference * (D - image - self.alpha * difference)).flatten(1).mean(dim=1)
            return self.weight * loss
        g = (w * (fake - D)).detach()
        loss = 0.5 * (image - (image - g).detach()).square().flatten(1).mean(dim=1)  # its gradient in the image is g/n
        return self.find_weight(step, g / g[0].numel()) * loss

    def forget(self) -> None:
        super().forget()
        self.pull = None

    def times(self, batch: Batch) -> Tensor:
        return batch["t"] if "t" in batch else super().times(batch)


def change(config: Any, *changes: Mapping[str, Any]) -> Any:
    """Change settings: mappings are merged, but for the objective, whose options are all of them, at first."""
    values = config.model_dump() | changes[0]
    for later in changes[1:]:
        values = merge(values, later)
    return type(config).model_validate(values)


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings: what `changes` says, and else what `values` says."""
    merged = dict(values)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        merged[key] = merge(values[key], value) if both else value
    return merged


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
