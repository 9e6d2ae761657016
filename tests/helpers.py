"""Tiny models, and the measurements that several tests share."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import shutil
import signal
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pidistill.files.pairs import Pairs
from pidistill.models.denoiser import Preconditioned
from pidistill.models.grid import Grid, karras_times
from pidistill.models.student import Student
from pidistill.models.teachers.gaussian import Gaussian
from pidistill.nets.base import build_net
from pidistill.objectives.base import Objective, Part, Phase, Setup
from pidistill.objectives.pid import PID
from pidistill.training.batches import draw_batch

SHAPE, CLASSES = (1, 8, 8), 3
NET = {"name": "song_unet", "model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]}
MLP = {"name": "mlp", "width": 16, "depth": 2}


@dataclass
class Result:
    """What a command answered."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The message of a refused command: exit code 2 and exactly one line, without a traceback."""
        assert self.code == 2, (self.code, self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


@torch.no_grad()
def shake(module: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Add noise to every weight: EDM starts its output layers at 1e-5, where a wrong network looks like a right one."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p += scale * torch.randn(p.shape, generator=generator).to(p.dtype)
    return module


def tiny_teacher(net: dict | None = None, shape: tuple[int, ...] = SHAPE, classes: int = CLASSES, **facts) -> Preconditioned:
    """A random network in EDM's preconditioning: no denoiser, but every formula can be checked on it."""
    spec = net or NET
    torch.manual_seed(0)
    teacher = Preconditioned(shake(build_net(spec, shape, classes)), shape, classes, net_spec=spec, **facts)
    return teacher.eval().requires_grad_(False)


class MadePairs(Pairs):
    """Pairs whose solutions, and states, are unit Gaussian numbers, in memory."""

    def __init__(self, num: int = 6, shape: tuple[int, ...] = SHAPE, classes: int = CLASSES, times: tuple[float, ...] = (),
                 t_max: float = 80.0):
        super().__init__(num, shape, classes, t_max, 0, times)

    def read_tensor(self, name: str, index: int) -> np.ndarray:
        shape = self.shape if name == "x" else (len(self.times), *self.shape)
        return np.random.default_rng(index).standard_normal(shape, dtype=np.float32)


def gaussian64(shape: tuple[int, ...] = (2,), mean: float = 0.3, std: float = 0.5) -> Gaussian:
    """One Gaussian in float64: denoiser and trajectory have closed forms."""
    return Gaussian(torch.full((1, *shape), mean, dtype=torch.float64), torch.tensor([std], dtype=torch.float64))


def grid_of(teacher, points: int) -> Grid:
    return Grid(karras_times(points, teacher.t_min, teacher.t_max, teacher.rho, getattr(teacher, "times", None)))


def pid_of(student: Student, teacher, points: int, **options) -> PID:
    """PID on a grid of so many points."""
    return PID(Setup(student, teacher, grid_of(teacher, points)), **options)


def draw(objective: Objective, ks: range, seed: int = 0, step: int = 0, number: int = 0, device="cpu",
         part: int = 0) -> dict[str, Tensor]:
    """The samples of these numbers, of a part of a step's phase `number`, as a run draws them."""
    return draw_batch(objective.phases()[number].parts[part], number, seed, step, ks, torch.device(device))


def list_parts(objective: Objective) -> list[tuple[int, int, Phase, Part]]:
    """The parts of all phases: number of the phase, number of the part in it, the phase, the part."""
    return [(number, k, phase, part) for number, phase in enumerate(objective.phases())
            for k, part in enumerate(phase.parts)]


def start(shape: tuple[int, ...], batch: int = 3, t_max: float = 80.0, dtype=torch.float64, seed: int = 1) -> Tensor:
    """z ~ N(0, T^2 I), (batch, *shape)."""
    return torch.randn(batch, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * t_max


@functools.cache
def vgg_weights() -> Path:
    """A file with random weights for VGG16's convolutions under torchvision's names, scaled so that no layer dies."""
    path = Path(tempfile.mkdtemp(prefix="pidistill-vgg-")) / "vgg16.pth"
    generator, state, place, channels = torch.Generator().manual_seed(0), {}, 0, 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            scale = (2 / (9 * channels)) ** 0.5
            state[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
            state[f"features.{place}.bias"] = torch.randn(width, generator=generator) * 0.1
            place, channels = place + 2, width
        place += 1
    torch.save(state, path)
    atexit.register(shutil.rmtree, path.parent, True)
    return path


def held_by(function: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The function's result, and the bytes that its graph holds for the backward pass."""
    seen: list[weakref.ref] = []
    with saved_tensors_hooks(lambda x: seen.append(weakref.ref(x)) or x, lambda x: x):
        result = function()
    kept = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for ref in seen if (x := ref()) is not None}
    return result, sum(kept.values())


def invert(x: Tensor, z: Tensor, t: Tensor, t_max: float) -> Tensor:
    """The network output F that makes Eq. (7) give the state x at time t."""
    s = (t / t_max).reshape(-1, *[1] * (z.ndim - 1))
    return (x - s * z) / (1 - s)


class Table(nn.Module):
    """A "network" that returns the states of a known trajectory, so that a student can be exactly that trajectory."""

    def __init__(self, state):
        super().__init__()
        self.state = state  # (z, t (B,)) -> x (B, ...)

    def F(self, z: Tensor, t: Tensor, t_max: float) -> Tensor:
        F = invert(self.state(z, t), z, t, t_max)
        return torch.where(F.isfinite(), F, torch.zeros_like(F))  # at T any F will do: Eq. (7) does not look at it


def network(student: Student, z: Tensor, labels: Tensor | None = None):
    """F(t, u, ...) -> outputs, as schemes take it."""
    return lambda *times: tuple(student.F(z, t, labels) for t in times)


def exact_network(teacher: Gaussian, z: Tensor):
    """F(t, u, ...) of the single Gaussian's own trajectory: `invert` of `teacher.exact` without its 0/0 at T.

    With r = sqrt((s^2 + t^2)/(s^2 + T^2)) and tau = t/T: F = mu (1 - b) + z b, b = (r - tau)/(1 - tau).
    """
    mu, s, T = teacher.means[0].to(z.dtype), float(teacher.scales), teacher.t_max

    def F(t: Tensor) -> Tensor:
        t = t.reshape(-1, *[1] * (z.ndim - 1))
        r, tau, V = ((s**2 + t**2) / (s**2 + T**2)).sqrt(), t / T, s**2 + T**2
        b = s**2 * (1 + r + (T**2 - t**2) / (V * (r + tau))) / (V * (1 + r))
        return mu * (1 - b) + z * b

    return lambda *times: tuple(F(t) for t in times)


def exact_student(teacher: Gaussian) -> Student:
    """A student that is the Gaussian teacher's own trajectory, in float64."""
    return student_of(teacher, lambda z, t: teacher.exact(z, t))


def student_of(teacher, state) -> Student:
    table = Table(state)
    student = Student(table, {"name": "table"}, teacher.facts())
    student.F = lambda z, t, labels=None: table.F(z, t, teacher.t_max)
    return student


@torch.no_grad()
def loss_of(student: Student, teacher, points: int = 40, batch: int = 64) -> float:
    """PID's loss, with L2, on a fixed batch: what a distillation must lower."""
    objective = pid_of(student, teacher, points)
    rng = torch.Generator().manual_seed(9)
    labels = {"labels": torch.arange(batch) % teacher.num_classes} if teacher.num_classes else {}
    z = torch.randn(batch, *teacher.shape, generator=rng) * teacher.t_max
    return objective.loss({"z": z, "i": torch.arange(batch) % objective.grid.points, **labels}).mean().item()


def in_child(function: Callable[[], object]) -> int:
    """Its exit status; negative: the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except SystemExit as exited:
            os._exit(int(exited.code or 0))
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_clean_child(function: Callable[..., object], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Start a function of a module in a child that has imported torch and done nothing yet.

    Where autograd has had threads of its own, as in some tests, a fork of this process could not train.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs", "pidistill.jobs.distill", "pidistill.cli", "accelerate.state"])
    process = context.Process(target=clean, args=(function, *arguments))
    process.start()
    return process


def clean(function: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the test runner was started in the background
    function(*arguments)


def exit_code(process: multiprocessing.process.BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode
