"""EDM's denoising loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.seeds import stream
from pidistill.files.image_set import ImageSet
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.objectives.base import TeacherSetup
from pidistill.objectives.edm import EDM
from tests.helpers import tiny_teacher

IMAGES, LABELS = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
DATA = ImageSet.of(IMAGES, LABELS)


def test_weighted_loss_has_its_closed_form():
    """With D = x the error is t n, so that the loss is (t^2 + sd^2)/sd^2 mean(n^2)."""
    objective = EDM(TeacherSetup(FunctionDenoiser(lambda x, t, labels=None: x, (1, 8, 8), 3), DATA))
    n = torch.randn(4, 1, 8, 8)
    t = torch.tensor([0.01, 0.5, 3.0, 40.0])
    loss = objective.loss({"y": IMAGES[:4], "ln_t": t.log(), "n": n})
    torch.testing.assert_close(loss, (t**2 + 0.25) / 0.25 * n.square().mean((1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_draws_pair_images_with_their_labels_and_follow_the_noise_distribution():
    objective = EDM(TeacherSetup(tiny_teacher(), DATA), p_mean=-0.4, p_std=0.7)
    samples = [objective.draw(stream(0, 0, k)) for k in range(500)]
    for sample in samples:
        k = next(k for k in range(5) if np.array_equal(sample["y"], IMAGES[k].numpy()))
        assert sample["labels"] == LABELS[k]
    ln_t = np.array([sample["ln_t"] for sample in samples])
    assert ln_t.mean() == pytest.approx(-0.4, abs=0.1) and ln_t.std() == pytest.approx(0.7, abs=0.07)
    assert np.stack([sample["n"] for sample in samples]).std() == pytest.approx(1, abs=0.02)


def test_unconditional_denoiser_gets_no_labels():
    sample = EDM(TeacherSetup(tiny_teacher(classes=0), DATA)).draw(stream(0))
    assert set(sample) == {"y", "ln_t", "n"}
    assert set(EDM(TeacherSetup(tiny_teacher(), ImageSet.of(IMAGES))).draw(stream(0))) == {"y", "ln_t", "n"}


def test_draws_take_an_index_then_a_time_then_noise_from_the_generator():
    """Training curves at a fixed seed hang on this order."""
    rng = stream(0, 3, 4)
    sample = EDM(TeacherSetup(tiny_teacher(), DATA), p_mean=-0.4, p_std=0.7).draw(stream(0, 3, 4))
    assert np.array_equal(sample["y"], IMAGES[int(rng.integers(5))].numpy())
    assert sample["ln_t"] == np.float32(-0.4 + 0.7 * rng.standard_normal())
    assert np.array_equal(sample["n"], rng.standard_normal((1, 8, 8), dtype=np.float32))


def test_flips_mirror_half_of_the_images_and_change_no_draw_without():
    objective = EDM(TeacherSetup(tiny_teacher(), DATA), flip=True)
    mirrored = 0
    for k in range(200):
        rng = stream(0, 3, k)
        sample, image = objective.draw(stream(0, 3, k)), IMAGES[int(rng.integers(5))].numpy()
        flip = bool(rng.integers(2))
        assert np.array_equal(sample["y"], image[:, :, ::-1] if flip else image)
        assert sample["ln_t"] == np.float32(-1.2 + 1.2 * rng.standard_normal())
        mirrored += flip
    assert 70 < mirrored < 130
