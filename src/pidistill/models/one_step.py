"""A student's single step as it is exported: image = a z + b net(c z, clock, labels), with z of standard deviation 1.

Every form (`models/forms.py`) is affine in the noise and in its network's output once its time is fixed, so that four
numbers and the network are the whole student. They are not typed in again for each form: the student itself is asked, with a
network in place of its own that gives a constant, and keeps what it is called with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import clip_images, copy_module, quantise
from pidistill.models.decoder import Decoder
from pidistill.models.labels import Null, number_labels
from pidistill.models.student import Student


class Affine(NamedTuple):
    """The numbers of a student's single step.

    a, b, c: of the noise, of the network's output, and of the noise that the network sees.
    clock: what the network is told of the time: one number; two of a network of two times, M of one that gives M states.
    states: M, where the network is called with M rows for an image, of which the last is the image; otherwise 1.
    """

    a: float
    b: float
    c: float
    clock: tuple[float, ...]
    states: int = 1


class _Probe(nn.Module):
    """The probe gives a constant in place of a network's output, and keeps what it was called with."""

    def __init__(self, constant: float):
        super().__init__()
        self.constant, self.seen = constant, list[Tensor]()

    def forward(self, u: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen = [u, c_noise]
        return torch.full_like(u, self.constant)


@torch.inference_mode()
def find_affine(student: Student) -> Affine:
    """Find a, b, c and the clock of a student's single step, in float64 where the student computes so.

    Raises PidistillError for a student whose step is not of this form.
    """
    z = torch.full((1, *student.shape), student.t_max, dtype=torch.float64)  # a noise of 1 everywhere, at T
    labels = torch.zeros(1, dtype=torch.int64) if student.num_classes else None
    images, probe = [], _Probe(0.0)
    for constant in (0.0, 1.0, 2.0):
        probe = _Probe(constant)
        asked = Student(probe, None, student.facts() | {"num_classes": student.num_classes}, student.preconditioning.spec,
                        None, student.form, student.null_label, student.drawing_time, student.times)
        images.append(asked.generate(z, labels).flatten())
    u, c_noise = probe.seen
    zero, one, two = (image[0].item() for image in images)
    b = one - zero
    even = all(bool((tensor == tensor.flatten()[0]).all()) for tensor in (*images, u))
    if not (even and abs(two - one - b) <= 1e-9 * max(1.0, abs(zero), abs(b))):
        raise PidistillError(f"a student of the form {student.form} is no sum of its noise and its network's output, and "
                             "cannot be exported")
    states = len(u)
    clock = tuple(c_noise.flatten().tolist())
    return Affine(zero, b, u.flatten()[0].item(), clock, states)


class OneStep(nn.Module):
    """The step computes images of noise: (B, C, H, W) standard normal, (B,) int64 labels -> (B, C, H, W) in [-1, 1].

    Latents end with their decoder. Vectors are not clipped.

    net: the network F(x, c_noise, labels). affine: the numbers of the step.
    shape: of the noise, (C, H, W). num_classes, null_label: as `Student` has them.
    decoder: of a latent space.
    pixels: also give the images as uint8, (B, C, H, W), as `sample` writes them.
    """

    def __init__(self, net: nn.Module, affine: Affine, shape: Sequence[int], num_classes: int = 0, null_label: Null = None,
                 decoder: Decoder | None = None, *, pixels: bool = False):
        super().__init__()
        self.net: Any = net
        self.affine, self.shape, self.num_classes, self.null_label = affine, tuple(shape), num_classes, null_label
        self.image_shape = decoder.image_shape(shape) if decoder else self.shape
        self.vae: Any = decoder.vae if decoder else None
        self.scale, self.shift = (decoder.scale, decoder.shift) if decoder else (1.0, 0.0)
        self.pixels = pixels
        # No buffer: it is part of the program, not of the weights.
        self.clock = torch.tensor(affine.clock, dtype=torch.float32)
        self.eval().requires_grad_(False)

    @classmethod
    def of(cls, student: Student, *, pixels: bool = False) -> OneStep:
        """Make the step of a student, of a copy of its network."""
        return cls(copy_module(student.net), find_affine(student), student.shape, student.num_classes, student.null_label,
                   student.decoder, pixels=pixels)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        a, b, c, _, states = self.affine
        u, y = c * noise, number_labels(labels, self.null_label)
        # Tensor.shape, since len() would bind a traced program to its example's number of images.
        clock = self.clock.to(noise.device)
        if states > 1:  # the states of an image side by side
            u, clock = u.repeat_interleave(states, dim=0), clock.repeat(noise.shape[0])
            y = None if y is None else y.repeat_interleave(states, dim=0)
        else:
            clock = clock.expand(noise.shape[0], clock.shape[0]) if clock.shape[0] > 1 else clock.expand(noise.shape[0])
        output = self.net(u, clock, y)[:, :self.shape[0]]  # a variance may follow
        if states > 1:
            output = output.unflatten(0, (-1, states))[:, -1]
        x = a * noise + b * output
        if self.vae is not None:
            x = self.vae.decode(x / self.scale + self.shift, return_dict=False)[0]
        x = clip_images(x)
        return (x, quantise(x)) if self.pixels else x

    def make_inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Make an example to trace with: noise (batch, C, H, W) and, with classes, labels (batch,)."""
        noise = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        return (noise, torch.zeros(batch, dtype=torch.int64)) if self.num_classes else (noise,)
