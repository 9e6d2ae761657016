"""Pictures: every pixel in its place."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import quantise
from pidistill.evaluation.pictures import (
    check_drawable,
    drawable,
    encode_png,
    tile,
    to_pil,
    write_captioned,
    write_comparison,
    write_grid,
)


def test_tile_places_images_in_reading_order():
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 2, 3)
    canvas = tile(images, columns=3)
    assert canvas.shape == (1, 2 * 3 + 1, 3 * 4 + 1)
    assert [canvas[0, y, x].item() for y, x in ((1, 1), (1, 5), (1, 9), (4, 1), (4, 5))] == [-1, -0.5, 0, 0.5, 1]
    assert canvas[0, 4, 9] == 0 and bool((canvas[0, 3] == 0).all()) and bool((canvas[0, :, 4] == 0).all())


def test_written_grid_has_the_images_pixels(tmp_path):
    images = torch.rand(4, 3, 5, 5) * 2 - 1
    write_grid(tmp_path / "new" / "a.png", images, columns=2)
    pixels = np.array(Image.open(tmp_path / "new" / "a.png"))
    scale = pixels.shape[1] // 13
    assert pixels.shape == (13 * scale, 13 * scale, 3) and 500 < pixels.shape[1] < 700
    np.testing.assert_array_equal(pixels[::scale, ::scale][1:6, 7:12], quantise(images[1]).permute(1, 2, 0).numpy())


def test_grey_stays_grey():
    assert to_pil(torch.zeros(1, 2, 3)).mode == "L" and to_pil(torch.zeros(1, 2, 3), 4).size == (12, 8)


def test_comparison_puts_the_teacher_above_the_student(tmp_path):
    """20 white images above 20 black ones, in rows of 16: white, black, white, black, the last two rows filled up."""
    white, black = torch.ones(20, 1, 4, 4), -torch.ones(20, 1, 4, 4)
    write_comparison(tmp_path / "a.png", white, black)
    pixels = np.array(Image.open(tmp_path / "a.png").convert("L"))[:, 74:]
    scale = pixels.shape[1] // 81
    rows = [pixels[int((1 + 5 * r + 2) * scale), int(3 * scale)] for r in range(4)]
    assert rows == [255, 0, 255, 0]
    assert pixels[int(13 * scale), int((1 + 5 * 10) * scale)] == 128  # number 26 does not exist


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\tb\x1b[31m", "日本 😀", "a\udcff", ""])
def test_captions_may_be_any_folders_name(tmp_path, name):
    write_captioned(tmp_path / "a.png", torch.zeros(4, 1, 4, 4), 2, ["a", f"student {name}"], [name, "y"])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 900


def test_captions_need_room_beside_and_above(tmp_path):
    images = torch.zeros(4, 1, 4, 4)
    write_captioned(tmp_path / "a.png", images, 2, ["a", "b"], [])
    write_captioned(tmp_path / "b.png", images, 2, ["a", "b"], ["x", "y"])
    plain, headed = Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png")
    assert headed.width == plain.width and headed.height == plain.height + 20
    beside = np.array(plain.convert("L"))[:, :74]
    assert beside.min() < 50 and beside.max() == 255  # black letters on white


@pytest.mark.parametrize("shape, good", [((1, 4, 4), True), ((3, 4, 4), True), ((2, 4, 4), False), ((2,), False),
                                         ((4, 4), False)])
def test_drawable(shape, good):
    assert drawable(shape) is good
    if not good:
        with pytest.raises(PidistillError, match=r"grey or RGB images.*npz"):
            check_drawable(shape)


def test_unwritable_picture_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PidistillError, match="cannot write"):
        write_grid(tmp_path / "file" / "a.png", torch.zeros(1, 1, 4, 4), 1)


@pytest.mark.parametrize("shape", [(5, 7, 1), (6, 4, 3), (1, 1, 3)])
def test_a_png_holds_the_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    picture = Image.open(io.BytesIO(encode_png(pixels)))
    picture.verify()
    read = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    assert picture.mode == ("L" if shape[2] == 1 else "RGB") and np.array_equal(read.reshape(shape), pixels)
