"""Noise, network and copies overlap, nothing of the images changes, and every image has a label."""

from __future__ import annotations

import threading

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of, noise, pair_noise
from pidistill.core.tensors import clip_images
from pidistill.models.drawing import choose_labels, draw_batches, gather
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student_init import make_student
from tests.helpers import SHAPE, tiny_teacher

CPU = torch.device("cpu")
SEEDS = list(range(100, 120))


@pytest.fixture
def student():
    return make_student(tiny_teacher()).eval().requires_grad_(False)


def own_threads() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_a_sample_is_what_the_plain_loop_gives_bit_for_bit(student, batch_size):
    y = labels_of(SEEDS, 3)
    plain = []
    with torch.inference_mode():
        for k in range(0, len(SEEDS), batch_size):
            z = noise(SEEDS[k:k + batch_size], SHAPE) * student.t_max
            plain.append(student(z, student.t_min, y[k:k + batch_size]).float().cpu())
    assert torch.equal(student.sample(SEEDS, batch_size=batch_size, clip=False), torch.cat(plain))
    assert torch.equal(student.sample(SEEDS, batch_size=batch_size), clip_images(torch.cat(plain)))


def test_batches_of_a_stochastic_sampler_have_the_draws_of_their_own_seeds(teacher):
    y = labels_of(SEEDS, 3)
    images = sample_teacher(teacher, SEEDS, y, sampler="ddpm", steps=3)
    torch.testing.assert_close(sample_teacher(teacher, SEEDS, y, sampler="ddpm", steps=3, batch_size=6), images,
                               rtol=0, atol=1e-4)


def test_noise_may_be_of_another_stream():
    batches = draw_batches(lambda z, y, part: z, range(5), None, SHAPE, CPU, batch_size=2,
                           draw_noise=lambda numbers, shape: pair_noise(3, numbers, shape))
    assert torch.equal(torch.cat(list(batches)), pair_noise(3, range(5), SHAPE))


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_interrupted_drawing_ends_its_threads(error):
    def draw(z, y, part):
        if 4 in part:
            raise error
        return z

    with pytest.raises(error):
        list(draw_batches(draw, range(100), None, SHAPE, CPU, batch_size=2))
    assert own_threads() == 0


def test_leaving_off_ends_the_threads():
    batches = draw_batches(lambda z, y, part: z, range(100), None, SHAPE, CPU, batch_size=2)
    next(batches)
    batches.close()
    assert own_threads() == 0


def test_gathered_parts_are_one_tensor():
    parts = [torch.full((2, 3), 1.0), torch.full((1, 3), 2.0, dtype=torch.float64)]
    whole = gather(iter(parts), 3, (3,))
    assert whole.dtype == torch.float32 and whole.tolist() == [[1.0] * 3] * 2 + [[2.0] * 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("batch_size", [3, 64])
def test_images_that_cross_the_bus_are_whole(student, batch_size):
    """A batch that was read before its copy had ended would differ."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = student.sample(range(300))
    student.cuda()
    for _ in range(3):
        torch.testing.assert_close(student.sample(range(300), batch_size=batch_size), expected, rtol=0, atol=1e-4)
    with torch.inference_mode():
        z, y = noise(range(300), SHAPE).cuda() * student.t_max, labels_of(range(300), 3).cuda()
        plain = torch.cat([student(z[k:k + batch_size], student.t_min, y[k:k + batch_size]).cpu()
                           for k in range(0, 300, batch_size)])
    assert torch.equal(student.sample(range(300), batch_size=batch_size, clip=False), plain)


def test_given_labels_are_checked_and_spread():
    seeds = [5, 6, 7]
    assert choose_labels(2, 3, seeds).tolist() == [2, 2, 2]
    assert choose_labels([0, 1, 2], 3, seeds).tolist() == [0, 1, 2]
    assert choose_labels([0, 1], 3, [*seeds, 8]).tolist() == [0, 1, 0, 1]
    assert choose_labels(None, 0, seeds) is None
    assert choose_labels(None, 3, seeds).tolist() == labels_of(seeds, 3).tolist()


@pytest.mark.parametrize("labels, classes, words", [
    ([3], 3, "label 3 is outside the classes 0-2"), ([0, -1, 2], 3, "label -1"), ([0, 1], 3, "2 labels for 3 images"),
    ([0], 0, "unconditional")])
def test_bad_labels_are_refused(labels, classes, words):
    with pytest.raises(PidistillError, match=words):
        choose_labels(labels, classes, [5, 6, 7])


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 1), (2, 3), (2, 3, 9, 8)])
def test_batches_of_another_shape_are_not_broadcast(shape):
    with pytest.raises(PidistillError, match=r"images must have the shape \(3, 8, 8\)"):
        gather([torch.zeros(2, 3, 8, 8), torch.zeros(shape)], 4, (3, 8, 8))
