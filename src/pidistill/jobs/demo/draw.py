"""What the page of `pidistill demo` asks for, as pictures and words; it knows nothing of the page.

Wrong requests raise PidistillError, whose line the page shows.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import MAX_SEED, noise, parse_integers
from pidistill.core.tensors import clip_images, find_device
from pidistill.evaluation.pictures import tile, to_pil
from pidistill.jobs.trajectory import compute_trajectories
from pidistill.models.denoiser import Denoiser
from pidistill.models.drawing import choose_labels
from pidistill.models.forms import FORMS
from pidistill.models.samplers.base import parse_single_sampler, sample_teacher
from pidistill.models.student import Student

MOST_IMAGES, MOST_SOLVER_STEPS = 64, 100  # of a request
TIMES, BETWEEN = 12, 9             # points of a trajectory, and images between two noises
SIDE = 256                         # pixels, at least, of a picture's shorter side
RANDOM = "random"


class Demo:
    """Draws for a page: one request at a time, since the models are on one device.

    student, teacher: on their device; without a teacher the page shows the student alone.
    """

    def __init__(self, student: Student, teacher: Denoiser | None = None):
        self.student, self.teacher = student, teacher
        self.lock = threading.Lock()
        self.states = functools.lru_cache(maxsize=8)(self.compute_states)

    @property
    def classes(self) -> list[str]:
        """The choices of a class: its number, or that each seed has its own."""
        return [RANDOM, *map(str, range(self.student.num_classes))] if self.student.num_classes else []

    def parse_label(self, label: str | None) -> int | None:
        """Parse the choice of a class. Raises PidistillError."""
        if label in (None, "", RANDOM):
            return None
        numbers = parse_integers(str(label), "class")
        choose_labels(numbers[:1], self.student.num_classes, [0])
        return numbers[0]

    def sample(self, seeds: str, label: str | None = None) -> tuple[list[Image.Image], str]:
        """Draw the images of seeds, such as 0-15,40, and say how long it took."""
        numbers = parse_integers(seeds, most=MOST_IMAGES)
        classes = self.parse_label(label)
        with self.lock:
            began = time.perf_counter()
            images = self.student.sample(numbers, classes)
            took = time.perf_counter() - began
        return [enlarge(image) for image in images], f"{len(numbers)} images in {1000 * took:.0f} ms, one network call each"

    def compare(self, seed: float, label: str | None, sampler: str) -> tuple[Image.Image, str, Image.Image, str]:
        """Draw a seed in one step and with the teacher's sampler, such as heun:18, each with the time that it took."""
        seeds, classes = [self.parse_seed(seed)], self.parse_label(label)
        solver = parse_single_sampler(sampler, 18)
        if not 1 <= solver.steps <= MOST_SOLVER_STEPS:
            raise PidistillError(f"a sampler may take 1 to {MOST_SOLVER_STEPS} steps here, got {solver.steps}")
        teacher = self.require_teacher()
        y = choose_labels(classes, self.student.num_classes, seeds)
        with self.lock:
            began = time.perf_counter()
            ours = self.student.sample(seeds, y)
            between = time.perf_counter()
            theirs = sample_teacher(teacher, seeds, y, sampler=solver)
            ended = time.perf_counter()
        return (enlarge(ours[0]), f"student, 1 call: {1000 * (between - began):.0f} ms", enlarge(clip_images(theirs)[0]),
                f"teacher, {solver}, {solver.evaluations(teacher)} calls: {1000 * (ended - between):.0f} ms")

    def show_state(self, seed: float, label: str | None, point: float) -> tuple[Image.Image, Image.Image | None, str]:
        """Show the student's state, and the teacher's, at a point of the trajectory, 0 (T) to `TIMES` - 1 (eps)."""
        number, classes = self.parse_seed(seed), self.parse_label(label)
        times, ours, theirs = self.states(number, classes)
        k = min(max(int(point), 0), len(times) - 1)
        t = times[k]
        contrast = self.student.sigma_data / (self.student.sigma_data**2 + t**2) ** 0.5  # as of an image
        other = None if theirs is None else enlarge(theirs[k] * contrast)
        return enlarge(ours[k] * contrast), other, f"t = {t:.3g}, shown at the contrast of an image"

    def compute_states(self, seed: int, label: int | None) -> tuple[list[float], Tensor, Tensor | None]:
        """Compute times, the student's states and the teacher's (K, C, H, W) of a seed. Raises PidistillError."""
        if not FORMS[self.student.form].states or self.student.decoder:
            raise PidistillError("this student has no trajectory of images to show")
        y = choose_labels(label, self.student.num_classes, [seed])
        with self.lock:
            if self.teacher is not None:
                times, ours, theirs = compute_trajectories(self.student, self.teacher, [seed], y, TIMES)
                return times.tolist(), ours[:, 0], theirs[:, 0]
            times = torch.linspace(0, 1, TIMES, dtype=torch.float64)
            low, high = (value ** (1 / self.student.rho) for value in (self.student.t_min, self.student.t_max))
            grid = ((high + times * (low - high)) ** self.student.rho).tolist()
            z = noise([seed], self.student.shape).to(find_device(self.student)) * self.student.t_max
            labels = None if y is None else y.to(z.device)
            return grid, self.student.trajectory(z, grid, labels).cpu()[:, 0], None

    def interpolate(self, first: float, second: float, label: str | None) -> tuple[Image.Image, str]:
        """Draw a row of images of noises between those of two seeds, on the sphere, so that each is a noise too."""
        seeds, classes = [self.parse_seed(first), self.parse_seed(second)], self.parse_label(label)
        a, b = noise(seeds, self.student.shape).double()
        shares = torch.linspace(0, 1, BETWEEN, dtype=torch.float64).reshape(-1, *[1] * a.ndim)
        angle = torch.acos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
        z = ((shares.mul(-1).add(1) * angle).sin() * a + (shares * angle).sin() * b) / angle.sin() if angle > 1e-4 else \
            a.expand(BETWEEN, *a.shape)
        one = choose_labels(classes, self.student.num_classes, seeds[:1])  # of the first seed, unless it is chosen
        y = None if one is None else one.expand(BETWEEN)
        with self.lock, torch.inference_mode():
            device = find_device(self.student)
            x = self.student.generate(z.float().to(device) * self.student.t_max, None if y is None else y.to(device))
            decoder = self.student.decoder
            x = clip_images((decoder.to(device)(x) if decoder else x).float().cpu())
        return enlarge(tile(x, BETWEEN)), f"from seed {seeds[0]} to seed {seeds[1]}, {BETWEEN} noises"

    def parse_seed(self, seed: Any) -> int:
        """Parse a seed, which a page gives as a number. Raises PidistillError."""
        try:
            number = int(seed)
        except (TypeError, ValueError, OverflowError):
            raise PidistillError(f"a seed is a whole number from 0, got {str(seed)[:40]!r}") from None
        if number != float(seed) or not 0 <= number < MAX_SEED:
            raise PidistillError(f"a seed is a whole number from 0, got {str(seed)[:40]}")
        return number

    def require_teacher(self) -> Denoiser:
        """Give the teacher. Raises PidistillError where there is none."""
        if self.teacher is None:
            raise PidistillError("there is no teacher to compare with; name one with --teacher")
        return self.teacher


def enlarge(image: Tensor) -> Image.Image:
    """Turn an image (C, H, W) in [-1, 1] into PIL's, by a whole factor so large that a page need not blur it."""
    return to_pil(image.clip(-1, 1), max(1, -(-SIDE // min(image.shape[1:]))))
