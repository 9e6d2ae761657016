"""A denoiser is D(x, t, labels) = E[image | x = image + t * noise], the teacher's knowledge of the data.

It is made of a raw network in a preconditioning (Karras et al., 2022, Eq. 7) or of any function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.core.errors import ForeignError, PidistillError, explain, words_of
from pidistill.core.foreign import call_foreign, check_answer
from pidistill.core.processes import is_main
from pidistill.core.tensors import expand_time
from pidistill.models.decoder import Decoder
from pidistill.models.grid import RHO, SIGMA_DATA, T_MAX, T_MIN, karras_times
from pidistill.models.labels import Guide, Null, count_classes, count_labels, make_guide, number_labels, repeat_null
from pidistill.models.preconditioning import Preconditioning, call_preconditioned, cut_variance
from pidistill.nets.base import check_initialised, unwrap

CLASSES, ELEMENTS = 10**6, 2**26  # classes, and numbers in an image, that a config.json may speak of
FACTS = ("shape", "num_classes", "t_min", "t_max", "sigma_data", "rho")


class Denoiser(nn.Module):
    """A teacher D(x, t, labels) gives the mean of clean images given x = image + t * noise.

    Subclasses define `denoise(x, t, labels=None)`: x (B, C, H, W), t (B,) in units of the data's scale, labels (B,)
    int64 or None -> (B, C, H, W). No gradient is ever asked for. Everything that depends on the teacher's noise
    range or data scale reads it here. What a subclass raises, and an answer that is none, is a PidistillError with the
    teacher's name and the exception's words.

    shape: (C, H, W) of x and D. num_classes: labels that `denoise` knows, 0 for an unconditional teacher; as an attribute
        the classes that are drawn, without the null label.
    null_label: what `denoise` knows images without a class by: a label, which is never drawn and past which the labels of
        `denoise` are one higher than the classes; "none", where it is called without labels then; None if it knows none.
    guidance: w of classifier-free guidance (Ho & Salimans, 2022); with w != 1, D = u + w (c - u), of c with the label and
        u without a class: two calls, in one where the null label is a number. `guide` holds both.
    t_min, t_max: the noise range, eps and T. sigma_data: standard deviation of the data. rho: spacing of the Karras grid.
    times: the only noise levels that the teacher knows, ascending, (K,) float64, to which grids snap; None if it takes any.
    source: the folder that the teacher was read from.
    origin: what is known of the file: its name, SHA-256, licence, and what was left out.
    spec: what `load_teacher` was asked for.
    decoder: turns latents into images, for those who draw or measure; x and D are latents then.
    """

    times: Tensor | None = None
    origin: dict[str, Any] | None = None
    source: Path | None = None
    spec: str | None = None

    def __init__(self, shape: Sequence[int], num_classes: int = 0, *, t_min: float = T_MIN, t_max: float = T_MAX,
                 sigma_data: float = SIGMA_DATA, rho: float = RHO, guidance: float = 1.0, null_label: Null = None):
        super().__init__()
        self.decoder: Decoder | None = None
        self._said: set[str] = set()
        try:
            self.shape, self.num_classes = tuple(map(to_whole, shape)), to_whole(num_classes)
            self.t_min, self.t_max, self.sigma_data, self.rho = float(t_min), float(t_max), float(sigma_data), float(rho)
        except (TypeError, ValueError) as error:  # as a user's own class states them
            raise PidistillError(f"{type(self).__name__}: shape must be whole numbers (C, H, W), num_classes a whole "
                                 f"number, t_min, t_max, sigma_data and rho numbers: {words_of(error)}") from error
        if not 0 < t_min < t_max:
            raise PidistillError(f"a denoiser needs 0 < t_min < t_max, got t_min={t_min}, t_max={t_max}")
        for name in ("t_max", "sigma_data", "rho"):
            if not 0 < getattr(self, name) < math.inf:
                raise PidistillError(f"a denoiser's {name} must be a positive number, got {getattr(self, name):g}")
        guide = make_guide(null_label, guidance)
        self.num_classes = count_classes(self.num_classes, guide.null)
        self.guide = self._check_guide(guide)

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        t, (null, guidance) = expand_time(t, x), self.guide
        y, nothing = number_labels(labels, null), repeat_null(null, x)
        if labels is None or guidance == 1:
            return self.denoise(x, t, nothing if labels is None else y)
        if y is None or nothing is None:  # without labels there is no class
            pieces = [self.denoise(x, t, y), self.denoise(x, t, None)]
        else:
            pieces = [self.denoise(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), torch.cat([y, nothing]))]
        for D in pieces:
            check_answer(D, x, name_teacher(self), 2 // len(pieces))
        conditional, unconditional = torch.cat(pieces).chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def set_guidance(self, guidance: float | str = 1.0, null: Null = None) -> Denoiser:
        """Choose the null label, where the teacher's maker has not, and the scale of guidance; gives the teacher.

        A null label that is counted among the classes is one no more: 11 classes with null=10 become 10.

        guidance: as of the class. null: as `null_label`; None leaves what is known.
        Raises PidistillError for a label that the network has not, and for guidance without a null label or classes.
        """
        guide, name = make_guide(null, guidance), name_teacher(self)
        old, known = self.guide.null, count_labels(self.num_classes, self.guide.null)
        if guide.null in (None, old):
            self.guide = self._check_guide(Guide(old, guide.guidance))
            return self
        if not known or (isinstance(guide.null, int) and guide.null >= known):
            raise PidistillError(f"null={null}: {name} knows " + (
                f"the labels 0-{known - 1} (its num_classes counts the null label too)" if known else "no classes"))
        if isinstance(old, int) and old != self.num_classes:
            raise PidistillError(f"null={null}: {name} has the null label {old} already")
        if guide.null == "none" and self.needs_labels():
            raise PidistillError(f"null=none: {name} cannot be called without labels; null=N names the label that stands "
                                 "for no class")
        self.num_classes = count_classes(self.num_classes, guide.null)
        self.guide = self._check_guide(guide)
        return self

    def needs_labels(self) -> bool:
        """Tell whether a teacher with classes cannot be called without labels."""
        return False

    def _check_guide(self, guide: Guide) -> Guide:
        if guide.guidance != 1 and not self.num_classes:
            raise PidistillError(f"guidance={guide.guidance:g} needs a teacher with classes; this one has none")
        if guide.guidance != 1 and guide.null is None:
            raise PidistillError(f"guidance={guide.guidance:g} needs a network that knows images without a class, and this "
                                 "one does not say so; if it was trained with such a label, name it with null=N, or with "
                                 "null=none if it was trained without labels at times, as EDM drops them")
        return guide

    def say_once(self, message: str) -> None:
        """Print a message about this teacher the first time that it is said, on the process that writes."""
        if message not in self._said and is_main():
            from pidistill.core.console import console  # rich, which most have no need of

            console.print(message, soft_wrap=True)
        self._said.add(message)

    def __call__(self, x: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        name = name_teacher(self)
        given = x if isinstance(self, Preconditioned) else x.clone()  # a user's code may change it in place
        D = call_foreign(super().__call__, name, given, t, labels)
        check_answer(D, x, name)
        return D.to(x.dtype)  # half and double numbers are as good

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of what is drawn and measured: `shape`, or that of the decoded images."""
        return self.decoder.image_shape(self.shape) if self.decoder else self.shape

    def grid_times(self, points: int) -> Tensor:
        """Compute this teacher's Karras grid, (points,) float64 descending; fewer where several snap to one of `times`."""
        return karras_times(points, self.t_min, self.t_max, self.rho, self.times)

    def facts(self) -> dict[str, Any]:
        """Give what a student inherits: shape, classes, noise range, data scale and spacing of the grid, by FACTS."""
        return {name: getattr(self, name) for name in FACTS}


class Preconditioned(Denoiser):
    """A raw network becomes D = c_skip x + c_out net(c_in x, c_noise) (Karras et al., 2022, Eq. 7).

    preconditioning: what the network was trained to predict, see `pidistill.models.preconditioning`.
    net_spec: how to build the network again: {"name": a network of the package, options}, or `python:MODULE:FACTORY` of your
        own. Without it, a student still starts as the network; `load_student` is then given it, or a factory.
    facts: t_min, t_max, sigma_data, rho, guidance and null_label of `Denoiser`.
    """

    def __init__(self, net: nn.Module, shape: Sequence[int], num_classes: int = 0, *,
                 preconditioning: str | dict[str, Any] = "edm", net_spec: str | dict[str, Any] | None = None,
                 **facts: Any):
        super().__init__(shape, num_classes, **facts)
        self.model = net  # EDM's name for it, so that its state dictionaries load as they are
        self.net_spec = {"name": net_spec} if isinstance(net_spec, str) else net_spec
        check_initialised(unwrap(net), "a teacher")
        weights = dict(unwrap(net).named_parameters())
        fixed = frozenset(name for name, p in weights.items() if not p.requires_grad)
        self.fixed = fixed if len(fixed) < len(weights) else frozenset()  # all are, where it is only to be called
        self.preconditioning = Preconditioning(preconditioning, self.sigma_data)
        self.times = self.preconditioning.times
        if self.times is not None:  # T and eps are noise levels that the network knows
            self.t_min, self.t_max = (float(self.times[(self.times.log() - math.log(t)).abs().argmin()])
                                      for t in (self.t_min, self.t_max))

    @property
    def null_label(self) -> Null:
        return self.guide.null

    @property
    def guidance(self) -> float:
        return self.guide.guidance

    @guidance.setter
    def guidance(self, value: float) -> None:
        self.set_guidance(value)

    def needs_labels(self) -> bool:
        return bool(getattr(unwrap(self.model), "needs_labels", False))

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return call_preconditioned(self.evaluate_network, self.preconditioning(t), x, labels)

    def evaluate_network(self, u: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Call the network on c_in x (B, C, H, W), c_noise (B,) and its own labels, and give its output (B, C, H, W).

        A variance, which some networks put out after the image's channels, is cut off; other shapes are refused.
        """
        return cut_variance(self.model(u, c_noise, labels), u)


class FunctionDenoiser(Denoiser):
    """Any callable (x, t, labels) -> D is a denoiser, once its owner states the facts of `Denoiser`."""

    def __init__(self, function: Callable[..., Tensor], shape: Sequence[int], num_classes: int = 0, **facts: Any):
        super().__init__(shape, num_classes, **facts)
        self.function = function

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.function(x, t, labels)


def call_unchecked(teacher: Denoiser, x: Tensor, t: float, labels: Tensor | None = None) -> Any:
    """Give what a teacher gives, whatever it is: for those who say what is wrong with it. Raises ForeignError."""
    return call_foreign(functools.partial(nn.Module.__call__, teacher), name_teacher(teacher), x, t, labels)


def name_teacher(teacher: Denoiser) -> str:
    """Name a teacher in messages: by its spec, or by what it is made of."""
    if teacher.spec:
        return f"the teacher {teacher.spec}"
    if isinstance(teacher, FunctionDenoiser):
        return f"the teacher {getattr(teacher.function, '__qualname__', type(teacher.function).__name__)}"
    net = getattr(teacher, "net_spec", None)
    return f"the teacher's network {net['name']}" if net else f"the teacher {type(teacher).__name__}"


def as_denoiser(teacher: Any) -> Denoiser:
    """Give the teacher itself if it is a denoiser, or wrap a callable that states its facts as attributes.

    Raises PidistillError, which names the attributes that are missing, and for whatever an attribute raises.
    """
    if isinstance(teacher, Denoiser):
        return teacher
    try:
        return _wrap_callable(teacher)
    except PidistillError:
        raise
    except Exception as error:  # of a property of theirs
        raise ForeignError(explain(f"{type(teacher).__name__} cannot be asked for a teacher's attributes", error)) from error


def _wrap_callable(teacher: Any) -> Denoiser:
    missing = [name for name in ("shape", "num_classes", "t_min", "t_max", "sigma_data") if not hasattr(teacher, name)]
    if missing or not callable(teacher):
        raise PidistillError(f"{type(teacher).__name__} is no teacher: it needs denoise(x, t, labels) and the attributes "
                             f"shape, num_classes, t_min, t_max, sigma_data; missing: {', '.join(missing) or 'the call'}")
    facts = {name: getattr(teacher, name) for name in ("t_min", "t_max", "sigma_data")}
    return FunctionDenoiser(getattr(teacher, "denoise", teacher), teacher.shape, teacher.num_classes,
                            rho=getattr(teacher, "rho", RHO), **facts)


def to_whole(value: Any) -> int:
    """Give a whole number as an int. Raises ValueError for 3.5, which int() would round."""
    number = int(value)
    if number != value:
        raise ValueError(f"{value!r:.40} is no whole number")
    return number


def parse_facts(config: dict[str, Any]) -> dict[str, Any]:
    """Take FACTS out of a config.json, each of a possible size. Raises KeyError or ValueError."""
    facts = {name: config[name] for name in FACTS}
    for name, value in facts.items():
        if name == "shape":
            possible = isinstance(value, list) and 0 < len(value) <= 4 and all(type(n) is int and n > 0 for n in value)
            expected, possible = f"1 to 4 sides of at most {ELEMENTS} in all", possible and math.prod(value) <= ELEMENTS
        elif name == "num_classes":
            expected, possible = f"an integer from 0 to {CLASSES}", type(value) is int and 0 <= value <= CLASSES
        else:
            expected, possible = "a positive number", type(value) in (int, float) and 0 < value < 1e9
        if not possible:
            raise ValueError(f"{name} must be {expected}, got {str(value)[:40]}")
    return facts
