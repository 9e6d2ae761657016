"""A set of images gives them exactly, as training and measurements take them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import dequantise, quantise
from pidistill.files.datasets import open_images
from pidistill.files.image_set import ImageSet
from tests.image_files import COLOUR, GREY, NAMES, encode, make_folder, random_pixels


def test_a_set_of_a_tensor():
    images, labels = torch.from_numpy(random_pixels(5, 2, 3, 4) / np.float32(128)) - 1, torch.tensor([0, 3, 1, 0, 2])
    data = ImageSet.of(images, labels, "mine")
    assert (len(data), data.shape, data.num_classes, data.licence) == (5, (2, 3, 4), 4, "mine")
    for k in range(5):
        assert np.array_equal(data.sample(k)["y"], images[k].numpy()) and data.sample(k)["labels"] == labels[k]
        assert np.array_equal(data.read(k), quantise(images[k]).permute(1, 2, 0).numpy())
    assert torch.equal(next(data.read_batches(5)), quantise(images))
    assert copy.deepcopy([data])[0] is data
    data.sample(0)["y"][:] = 3  # what a sample's owner does to it
    assert np.array_equal(data.sample(0)["y"], images[0].numpy())
    for other in (images.double(), images[0], images[:0]):
        with pytest.raises(PidistillError, match=r"images must be float32 of shape \(N, C, H, W\)"):
            ImageSet.of(other)
    for other in (labels[:4], labels.int(), labels - 1, labels[:, None]):
        with pytest.raises(PidistillError, match="labels must be 5 int64 from 0"):
            ImageSet.of(images, other)


@pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
def test_flips_mirror_left_and_right(tmp_path, pixels):
    """Of bytes that are decoded, and kept; and of numbers."""
    data = open_images(make_folder(tmp_path / "a", {name: encode(image) for name, image in zip(NAMES, pixels)}))
    wide = torch.from_numpy(np.moveaxis(pixels if pixels.ndim == 4 else pixels[..., None], -1, 1).copy())
    for images in (data, ImageSet.of(dequantise(wide))):
        for _ in range(2):
            flipped = images.sample(3, flip=True)["y"]
            assert np.array_equal(flipped, dequantise(wide[3]).numpy()[:, :, ::-1]) and flipped.flags.c_contiguous
            assert np.array_equal(images.sample(3)["y"], dequantise(wide[3]).numpy())


def test_vectors_are_drawn_and_are_no_images():
    points = np.arange(6, dtype=np.float32).reshape(3, 2)
    data = ImageSet(3, (2,), points.__getitem__)
    assert data.sample(1)["y"].tolist() == [2, 3]
    with pytest.raises(PidistillError, match="no left and right"):
        data.sample(1, flip=True)
    with pytest.raises(PidistillError, match=r"vectors of shape \(2,\) are no images"):
        next(data.read_batches(2))
