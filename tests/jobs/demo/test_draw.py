"""What a page asks for: pictures that are those of the verbs, and one line where a request is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import quantise
from pidistill.jobs.demo.draw import BETWEEN, MOST_IMAGES, SIDE, TIMES, Demo
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student_init import make_student
from tests.helpers import tiny_teacher


@pytest.fixture(scope="module")
def demo() -> Demo:
    teacher = tiny_teacher()
    return Demo(make_student(teacher), teacher)


def pixels(image) -> np.ndarray:
    factor = image.width // 8
    return np.asarray(image)[::factor, ::factor]


def test_samples_are_those_of_the_seeds(demo):
    images, words = demo.sample("3,5-6", "2")
    expected = quantise(demo.student.sample([3, 5, 6], 2))[:, 0].numpy()
    assert len(images) == 3 and all((pixels(image) == own).all() for image, own in zip(images, expected))
    assert images[0].size == (SIDE, SIDE) and words.startswith("3 images in")
    free = quantise(demo.student.sample([4]))[0, 0].numpy()
    assert (pixels(demo.sample("4", "random")[0][0]) == free).all() and (pixels(demo.sample("4")[0][0]) == free).all()


def test_both_draw_the_same_seed(demo):
    ours, fast, theirs, slow = demo.compare(7, "1", "euler:4")
    y = torch.tensor([1])
    assert (pixels(ours) == quantise(demo.student.sample([7], y))[0, 0].numpy()).all()
    expected = sample_teacher(demo.teacher, [7], y, sampler="euler", steps=4)
    assert (pixels(theirs) == quantise(expected.clip(-1, 1))[0, 0].numpy()).all()
    assert "1 call" in fast and "euler:4" in slow and "4 calls" in slow


def test_states_go_from_noise_to_the_image(demo):
    last = demo.show_state(7, "1", TIMES - 1)
    assert "t = 0.002" in last[2] and last[1] is not None
    own = quantise(demo.student.sample([7], 1))[0, 0].numpy().astype(int)
    assert abs(pixels(last[0]).astype(int) - own).max() <= 1
    first = demo.show_state(7, "1", 0)
    assert "t = 80" in first[2] and (pixels(first[0]) == pixels(first[1])).all()  # the noise of both
    assert demo.states.cache_info().hits >= 1
    alone = Demo(demo.student).show_state(7, "1", 0)
    assert alone[1] is None and (pixels(alone[0]) == pixels(first[0])).all()


def test_interpolation_begins_and_ends_with_the_seeds_images(demo):
    row, words = demo.interpolate(1, 2, "0")
    factor = row.height // 10
    tiles = np.asarray(row)[::factor, ::factor][1:9]
    for k, seed in ((0, 1), (BETWEEN - 1, 2)):
        own = quantise(demo.student.sample([seed], 0))[0, 0].numpy().astype(int)
        assert abs(tiles[:, 1 + 9 * k:9 + 9 * k].astype(int) - own).max() <= 1
    assert "seed 1 to seed 2" in words
    same, _ = demo.interpolate(1, 1, None)
    assert same.size == row.size


@pytest.mark.parametrize("ask, words", [
    (lambda demo: demo.sample("x"), "x"),
    (lambda demo: demo.sample("0", "9"), "outside the classes"),
    (lambda demo: demo.sample(f"0-{MOST_IMAGES}"), str(MOST_IMAGES)),
    (lambda demo: demo.show_state(-1, None, 0), "whole number"),
    (lambda demo: demo.show_state(1.5, None, 0), "whole number"),
    (lambda demo: demo.show_state(None, None, 0), "whole number"),
    (lambda demo: demo.compare(0, None, "heun:5000"), "1 to 100 steps"),
    (lambda demo: demo.compare(0, None, "nope:5"), "nope"),
    (lambda demo: demo.compare(float("inf"), None, "heun:5"), "whole number"),
    (lambda demo: Demo(demo.student).compare(0, None, "heun:5"), "no teacher to compare with")])
def test_wrong_requests_are_one_line(demo, ask, words):
    with pytest.raises(PidistillError) as error:
        ask(demo)
    assert words in str(error.value)


def test_students_without_trajectories_say_so():
    student = make_student(tiny_teacher(classes=0), form="consistency")
    with pytest.raises(PidistillError, match="no trajectory"):
        Demo(student).show_state(0, None, 0)
    assert Demo(student).classes == [] and Demo(student).sample("0")[0]
