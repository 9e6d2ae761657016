"""Images for training a teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.datasets import load_images


def test_digits_are_500_of_each_class_in_range():
    data = load_images("digits")
    assert data.images.shape == (5000, 1, 16, 16) and torch.bincount(data.labels).tolist() == [500] * 10
    assert data.images.min() == -1 and 0.99 < data.images.max() <= 1 and "MNIST" in data.licence
    assert bool((data.images[:, :, 0] == -1).all())  # the padding


def test_npz_round_trip(tmp_path):
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([4, 0]))
    data = load_images(str(tmp_path / "a.npz"))
    assert data.num_classes == 5 and data.labels.dtype == torch.int64
    np.testing.assert_allclose(data.images[1, 2], pixels[1, :, :, 2] / 127.5 - 1, rtol=1e-6)
    np.savez(tmp_path / "b.npz", images=pixels[..., 0])
    data = load_images(str(tmp_path / "b.npz"))
    assert data.images.shape == (2, 1, 4, 4) and data.labels is None and data.num_classes == 0


GOOD = np.zeros((3, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize("arrays, words", [
    ({"images": GOOD.astype(np.float32)}, "must be uint8"), ({"images": GOOD[0]}, "must be uint8"), ({"x": GOOD}, "images"),
    ({"images": GOOD, "labels": np.zeros(2, int)}, "3 integers"), ({"images": GOOD, "labels": np.zeros(3)}, "3 integers"),
    ({"images": GOOD, "labels": np.array([0, -1, 0])}, "3 integers"), ({"images": GOOD[:0]}, "images"),
    ({"images": GOOD[:0], "labels": np.zeros(0, int)}, "images"), ({"images": np.array([object()])}, "cannot read")])
def test_other_arrays_are_one_line(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(PidistillError, match=words) as caught:
        load_images(str(tmp_path / "a.npz"))
    assert "\n" not in str(caught.value)


def test_broken_files_are_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", images=GOOD)
    whole = (tmp_path / "a.npz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "a.npz").write_bytes(whole[:size])
        with pytest.raises(PidistillError, match="cannot read images"):
            load_images(str(tmp_path / "a.npz"))
    with pytest.raises(PidistillError, match="cannot read images"):
        load_images(str(tmp_path / "nowhere.npz"))
    with pytest.raises(PidistillError, match="data must be"):
        load_images("mnist")
