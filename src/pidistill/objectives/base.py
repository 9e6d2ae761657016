"""Training objectives: phases over named networks. The trainer knows networks and phases, and no method's name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.precision import Autocast, autocast
from pidistill.core.registry import find_member
from pidistill.core.tensors import copy_module
from pidistill.files.image_set import ImageSet
from pidistill.files.weights import check_saveable
from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import SIGMA_DATA, Grid
from pidistill.models.student import Student

Sample = dict[str, Any]     # the random numbers of one sample, as numpy values
Batch = dict[str, Tensor]   # those of a batch, stacked: (B, ...)
Needs = Literal["noise", "images", "pairs", "trajectories"]  # of the teacher's: noise and solution; and the states between

# Bands of noise levels t, in units of sigma_data, near which an image and its noise are of one size.
BANDS = {"low": (0.0, 1.0), "middle": (1.0, 10.0), "high": (10.0, math.inf)}


@dataclass(frozen=True)
class Setup:
    """What a distillation gives to its objective.

    student: what is trained, in the form that the objective's class names.
    teacher: frozen; it may be a black box.
    grid: the times t_0 = T > ... > t_{N-1} = eps, of the configuration's `grid.points`.
    data: images, or pairs of noise and image, for objectives that need them.
    recompute: `train.recompute`: blocks of networks are computed again in the backward pass.
    """

    student: Student
    teacher: Denoiser
    grid: Grid
    data: ImageSet | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        check_same_shape({"student": self.student, "teacher": self.teacher, "data": self.data})


@dataclass(frozen=True)
class TeacherSetup:
    """What a teacher's training gives to its objective: the denoiser that is trained, and images."""

    denoiser: Denoiser
    data: ImageSet

    def __post_init__(self) -> None:
        check_same_shape({"teacher": self.denoiser, "data": self.data})


Draw = Callable[[np.random.Generator, int], Sample]
Loss = Callable[[Batch, int], Tensor]


@dataclass(frozen=True)
class Part:
    """A share of a phase's batch, with a loss of its own. The phase's loss is the mean over all samples of its batch.

    name: of the part, in metrics and messages.
    share: of the batch, above 0; the shares of a phase add up to 1.
    draw, loss: as of `Phase`.
    """

    name: str
    share: float
    draw: Draw
    loss: Loss


@dataclass(frozen=True)
class Phase:
    """A gradient step on some of the networks. A step of a run takes its phases in their order.

    name: of the phase, in metrics, messages and checkpoints.
    trains: the names of networks; the others are constants meanwhile, through which gradients pass.
    draw: (generator, step) -> the random numbers of one sample; those of a batch are stacked.
    loss: (batch, step) -> the loss of every sample, (B,). Only the trainer averages.
    every: the phase is taken in the steps first, first + every, first + 2 every, ..., counted from 0.
    optimizer: settings that differ from the run's, such as {"lr": 1e-4, "betas": (0.0, 0.999)}.
    parts: in place of `draw` and `loss`, several losses, each on its share of the batch, one after the other.
    first: the step with which the phase begins, and its rate's warm-up and decay. A loss of zero until then would not be the
        same: Adam would count the zeros in its second moment, and take steps of several times the rate afterwards.
    """

    name: str
    trains: tuple[str, ...]
    draw: Draw | None = None
    loss: Loss | None = None
    every: int = 1
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        if self.draw and self.loss and not self.parts:
            object.__setattr__(self, "parts", (Part(self.name, 1.0, self.draw, self.loss),))

    def split(self, batch: int) -> list[range]:
        """Give the numbers of the samples of every part, of a batch of so many."""
        ends = [round(batch * sum(part.share for part in self.parts[:k])) for k in range(len(self.parts))]
        return [range(*pair) for pair in zip(ends, [*ends[1:], batch], strict=True)]

    def is_due(self, step: int) -> bool:
        """Tell whether step number `step` takes this phase."""
        return step >= self.first and (step - self.first) % self.every == 0

    def find_last(self, step: int) -> int:
        """Find the last step up to number `step` that took this phase; the first that does where none has."""
        return self.first + max(0, step - self.first) // self.every * self.every


@dataclass(frozen=True)
class Follower:
    """A copy of a network that moves after every step: p <- r p + (1 - r) of.

    of: the network's name.
    rate: step -> r; 1 stays, 0 copies.
    """

    of: str
    rate: Callable[[int], float]


class Objective(ABC):
    """An objective is what a run minimises: losses of phases, over networks that it makes or is given.

    A subclass takes a `Setup` (one that trains a teacher: a `TeacherSetup`) and options by keyword, with their types, and
    hands over to this constructor:

    networks: what is trained and saved, by name; `student` in a distillation.
    calls: what is only called, such as the teacher and a distance: placed on the device, and compiled, by the trainer.
    followers: copies of networks that the trainer moves, by name; they begin as their networks are now.

    It asks for networks, copies and calls by `self.networks[name]`, `self.copies[name]` and `self.calls[name]` when it needs
    them, and keeps none: the trainer may put another in the place (compiled, or gathered from shards).
    """

    setup: ClassVar[type] = Setup                 # or TeacherSetup
    needs: ClassVar[Needs] = "noise"
    form: ClassVar[str] = "trajectory"            # of the student
    averaged: ClassVar[tuple[str, ...]] = ("student",)
    teacher_precision: Autocast | None = None     # in which `call_teacher` calls it; None: as the student

    def __init__(self, networks: Mapping[str, nn.Module], calls: Mapping[str, Callable[..., Any]] | None = None,
                 followers: Mapping[str, Follower] | None = None):
        self.networks, self.calls, self.followers = dict(networks), dict(calls or {}), dict(followers or {})
        self.notes: dict[str, Tensor] = {}  # (sum, count) of what `note` was given, until the trainer takes it
        first = self.networks.get(self.averaged[0]) if self.averaged else None
        self.sigma_data: float = getattr(first, "sigma_data", SIGMA_DATA)
        if strays := [follower.of for follower in self.followers.values() if follower.of not in self.networks]:
            raise PidistillError(f"{type(self).__name__}: a follower of {strays[0]!r}, which is no network")
        self.copies: dict[str, nn.Module] = {
            name: copy_module(self.networks[follower.of]).eval().requires_grad_(False)
            for name, follower in self.followers.items()}

    @abstractmethod
    def phases(self) -> list[Phase]:
        """Give the phases of a step, in their order; the same at every call."""

    def call_teacher(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the teacher's D(x, t), (B, C, H, W), in the teacher's precision."""
        with autocast(self.teacher_precision, x.device) if self.teacher_precision else nullcontext():
            D: Tensor = self.calls["teacher"](x, t, labels)
        return D

    def note(self, name: str, values: Tensor) -> None:
        """Note numbers of a batch's samples, (B,); the trainer logs their mean since the last line of metrics.

        A loss notes the same names whenever it is computed. name: in metrics, such as `distance/image`.
        """
        self.add_note(name, torch.stack([values.detach().sum(), values.new_tensor(len(values))]).float())

    def note_bands(self, name: str, values: Tensor, t: Tensor) -> None:
        """Note numbers of a batch's samples, each in the band of its noise level (`BANDS`).

        name: in metrics, where it gets /low, /middle and /high. values, t: (B,).
        """
        t = t / self.sigma_data
        within = torch.stack([(t >= low) & (t < high) for low, high in BANDS.values()]).to(values)  # (bands, B)
        pairs = torch.stack([(within * values.detach()).sum(dim=1), within.sum(dim=1)], dim=1).float()
        for band, pair in zip(BANDS, pairs.unbind(), strict=True):
            self.add_note(f"{name}/{band}", pair)

    def add_note(self, name: str, pair: Tensor) -> None:
        """Add a sum and a count, (2,), to a note."""
        self.notes[name] = self.notes[name] + pair if name in self.notes else pair

    def forget(self) -> None:
        """Forget what losses have kept, such as their notes: those of trials are no run's."""
        self.notes.clear()

    def times(self, batch: Batch) -> Tensor | None:
        """Give the noise levels t of a batch's samples, (B,), which a message about a loss that is not finite names."""
        return None

    def diagnose(self, student: nn.Module) -> dict[str, float]:
        """Measure whether a run converges, for its metrics, with every preview. By default nothing is.

        It is called on the main process, where each process has the whole networks.

        student: averaged, at the first rate.
        """
        return {}

    @classmethod
    def asks_for_gradient(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether the teacher must be differentiable, with these options, as settings have them."""
        return False

    @classmethod
    def plan_student(cls, teacher: Denoiser, options: Mapping[str, Any], data: ImageSet | None) -> dict[str, Any]:
        """Plan the student: arguments of `make_student` that are the objective's to say, beside init, net and width.

        teacher: of the run.
        options: of the objective, as the settings have them.
        data: of the run, for an objective that needs trajectories; else None.
        """
        return {"form": cls.form}

    @classmethod
    def stages(cls, config: Any) -> list[Any]:
        """Give the configurations (`DistillConfig`) of the runs, one after the other, that a distillation consists of.

        `student.init=previous` of a later one starts from the student of the one before, and `teacher=previous` learns from
        it, if it is a `denoiser`.
        """
        return [config]


def check_same_shape(parts: Mapping[str, Any]) -> None:
    """Refuse models and images, by what they are called, that are not of one shape (C, H, W): they would be broadcast."""
    shapes = {name: tuple(part.shape) for name, part in parts.items() if hasattr(part, "shape")}
    if len({*shapes.values()}) > 1:
        raise PidistillError("an objective needs models and images of one shape, got " +
                             ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def find_objective(name: str, setup: type = Setup) -> type[Objective]:
    """Find an objective's class, for a distillation or (`TeacherSetup`) for a teacher's training. Raises PidistillError."""
    member = find_member("objectives", name)
    if not (isinstance(member, type) and issubclass(member, Objective)):
        raise PidistillError(f"the objective {name} must be a subclass of pidistill.Objective, got {type(member).__name__}")
    if member.setup is not setup:
        raise PidistillError(f"the objective {name} trains a "
                             f"{'teacher: pidistill train-teacher' if setup is Setup else 'student: pidistill distill'}")
    return member


def check_contract(objective: Objective) -> None:
    """Refuse an objective whose phases, networks and averages do not fit together, or whose networks cannot be saved.

    Raises PidistillError in one line.
    """
    where, phases, networks = type(objective).__name__, objective.phases(), objective.networks
    names = [phase.name for phase in phases]
    parts = [part.name for phase in phases for part in phase.parts]
    kinds = {"phase": [*names, *parts], "network": networks, "follower": objective.followers, "call": objective.calls}
    for what, given in kinds.items():
        if bad := [name for name in given if not name.isidentifier() or name == "optimizer"]:  # they name files
            raise PidistillError(f"{where}: a {what}'s name must be an identifier other than `optimizer`, got {bad[0]!r}")
    if not names or len({*names}) < len(names):
        raise PidistillError(f"{where}: a step needs phases of different names, got {names}")
    for phase in phases:
        if not phase.trains or phase.every < 1 or phase.first < 0:
            raise PidistillError(f"{where}: the phase {phase.name} must train a network, in every step or each so many")
        shares = [part.share for part in phase.parts]
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise PidistillError(f"{where}: the phase {phase.name} needs a draw and a loss, or parts whose shares are above "
                                 f"0 and add up to 1, got {shares}")
    names += [part.name for phase in phases if len(phase.parts) > 1 for part in phase.parts]
    if len({*names}) < len(names):
        raise PidistillError(f"{where}: phases and their parts need different names, got {names}")
    trained = {name for phase in phases for name in phase.trains}
    if missing := sorted((trained | {*objective.averaged}) - networks.keys()):
        raise PidistillError(f"{where}: {missing[0]!r} is trained or averaged, and is none of its networks "
                             f"({', '.join(networks)})")
    for name, network in networks.items():
        check_saveable(network, f"{where}: the network {name!r}")
    if idle := sorted(networks.keys() - trained):
        raise PidistillError(f"{where}: no phase trains the network {idle[0]!r}; what is only called belongs into `calls`")
