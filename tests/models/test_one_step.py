"""The numbers of a single step, found by asking, against the equations; and the step against the student."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of, noise
from pidistill.models.one_step import OneStep, find_affine
from pidistill.models.student import Student
from tests.exported_students import EVERY, make
from tests.helpers import MLP, NET

SEEDS = range(5)


@pytest.mark.parametrize("name", EVERY)
def test_the_step_draws_the_student_s_images(name):
    student = EVERY[name]()
    step, labels = OneStep.of(student), labels_of(SEEDS, student.num_classes)
    before = {key: value.clone() for key, value in student.net.state_dict().items()}
    x = step(noise(SEEDS, student.shape), labels)
    # Sums of up to 300 (a denoiser's T n and T eps) of a relative rounding of 2^-23, and the kernels' own, 1e-5.
    torch.testing.assert_close(x, student.sample(SEEDS, labels), rtol=0, atol=1e-4)
    assert x.shape == (5, *step.image_shape) and step.image_shape == student.image_shape
    assert all(torch.equal(value, before[key]) for key, value in student.net.state_dict().items())
    assert step.net is not student.net


def test_eq_7():
    """x(z, eps) = (eps/T) z + (1 - eps/T) F, F of c_in(T) z and ln(eps)/4."""
    T, eps, s = 80.0, 0.02, 0.5
    a, b, c, clock, states = find_affine(make(MLP))
    assert (a, b, c) == pytest.approx((eps, 1 - eps / T, T / math.hypot(T, s)), rel=1e-12)
    assert clock == (pytest.approx(math.log(eps) / 4, rel=1e-6),) and states == 1


def test_a_denoiser_draws_from_its_own_level():
    """D(x, t) = x - t eps(x/(1 + t^2)^1/2) at x = t n, t = 2.5."""
    from tests.models.test_preconditioning import SPECS

    a, b, c, *_ = find_affine(make(MLP, preconditioning=SPECS["epsilon"], form="denoiser", drawing_time=2.5))
    assert (a, b, c) == pytest.approx((2.5, -2.5, 2.5 / math.sqrt(1 + 2.5**2)), rel=1e-12)


def test_pixels_are_those_of_sample():
    student = make(NET, classes=3)
    x, pixels = OneStep.of(student, pixels=True)(noise(SEEDS, student.shape), labels_of(SEEDS, 3))
    assert pixels.dtype == torch.uint8 and x.abs().max() <= 1
    assert torch.equal(pixels, (x * 127.5 + 128).clip(0, 255).to(torch.uint8))


def test_what_is_no_sum_is_refused(monkeypatch):
    student = make(MLP)
    monkeypatch.setattr(Student, "generate", lambda self, z, labels=None: (z * self(z, self.drawing_time, labels)).tanh())
    with pytest.raises(PidistillError, match="is no sum of its noise and its network's output"):
        find_affine(student)


def test_vectors_are_not_clipped():
    student = make(MLP, shape=(2,), scale=2.0)
    x = OneStep.of(student)(noise(SEEDS, (2,)))
    assert x.abs().max() > 1 and isinstance(student.net, nn.Module)
    torch.testing.assert_close(x, student.sample(SEEDS), rtol=1e-5, atol=1e-5)
