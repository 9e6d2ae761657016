"""Arrays of images: which axis is which, and what beside them is read."""

from __future__ import annotations

import numpy as np
import pytest

from pidistill.core.errors import PidistillError
from pidistill.files.image_arrays import find_channels, read_images
from tests.image_files import GREY, make_npz, random_pixels


@pytest.mark.parametrize("shape, axis", [
    ((200, 3, 16, 16), 1), ((200, 1, 16, 16), 1), ((200, 16, 16, 3), 3), ((200, 16, 16, 1), 3), ((5, 3, 16, 24), 1),
    ((5, 4, 16, 16), 1), ((5, 2, 8, 8), 1), ((5, 32, 16, 16), 1), ((5, 16, 16, 4), 3), ((5, 16, 16, 2), 3),
    ((5, 4, 5, 7), 3), ((5, 16, 16, 16), 3), ((5, 3, 4, 3), 3), ((5, 1, 4, 3), 3), ((5, 3, 3, 1), 3), ((5, 3, 3, 3), 3)])
def test_the_axis_of_channels(tmp_path, shape, axis):
    assert find_channels(shape) == axis
    pixels = random_pixels(*shape)
    images, labels = read_images(make_npz(tmp_path / "a.npz", arr_0=pixels))
    assert labels is None and np.array_equal(images, np.moveaxis(pixels, axis, -1))


@pytest.mark.parametrize("shape, said", [
    ((5, 4, 16, 16), "is read as 5 images of 16x16 in 4 channels"), ((5, 4, 6, 7), "5 images of 6x4 in 7 channels"),
    ((16, 16, 3), "16 images of 3x16 in 1 channel"), ((5, 16, 16, 3), ""), ((5, 3, 16, 16), ""), ((5, 16, 16), "")])
def test_axes_that_are_no_pictures_are_said(tmp_path, capsys, shape, said):
    read_images(make_npz(tmp_path / "a.npz", images=random_pixels(*shape)))
    err = capsys.readouterr().err
    assert (said in err and err.count("\n") == 1) if said else err == ""


@pytest.mark.parametrize("more, said, labelled", [
    ({"label": np.arange(5)}, "(label)", False), ({"arr_1": np.zeros(5)}, "(arr_1)", False),
    ({"targets": np.arange(5), "names": np.array(list("abcde"))}, "2 of its arrays are not read (names, targets)", False),
    ({"y": np.arange(5), "labels": np.arange(5)[::-1]}, "(y)", True), ({"arr_1": np.arange(5)}, "", True),
    ({"labels": np.arange(5), "seeds": np.arange(5), "mu": np.zeros(3), "sigma": np.eye(3)}, "", True)])
def test_arrays_that_are_not_read_are_said(tmp_path, capsys, more, said, labelled):
    _, labels = read_images(make_npz(tmp_path / "a.npz", images=GREY, **more))
    err = capsys.readouterr().err
    assert (labels is not None) == labelled and said in err and err.count("\n") == bool(said)
    if labelled and "labels" in more:
        assert labels.tolist() == more["labels"].tolist()


def test_objects_are_refused_where_they_are_read_and_nowhere_else(tmp_path):
    path = make_npz(tmp_path / "a.npz", images=GREY, extra=np.array([None]))
    assert len(read_images(path)[0]) == 5
    with pytest.raises(PidistillError, match="Python objects"):
        read_images(make_npz(tmp_path / "a.npz", images=GREY, arr_1=np.array([None] * 5)))
