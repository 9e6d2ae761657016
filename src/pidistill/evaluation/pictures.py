"""Grids of images as PNG.

torchvision has `make_grid` and `encode_png`. Importing it takes as long as importing torch, most of a short `sample`, and
its encoder takes 1.5 times as long as `encode_png` here (26 us for 16x16 grey, 86 us for 32x32 RGB, against 17 and 53).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pidistill.core.errors import PidistillError, to_line
from pidistill.core.tensors import quantise
from pidistill.files.folders import write_bytes


def tile(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Lay images (N, C, H, W) in [-1, 1] out as one picture (C, H', W').

    columns: images in a row, also where there are fewer images. gap: width in pixels of the mid-grey lines between them.
    """
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = torch.zeros(c, rows * (h + gap) + gap, columns * (w + gap) + gap)
    for i, image in enumerate(images.float().cpu()):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        canvas[:, y:y + h, x:x + w] = image
    return canvas


def to_pil(image: Tensor, scale: int = 1) -> Image.Image:
    """Convert an image (C, H, W) in [-1, 1], C = 1 or 3, to PIL's, enlarged by the whole factor `scale`."""
    pixels = quantise(image).cpu().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode an image (H, W, C) uint8, C = 1 or 3, as the bytes of a PNG file.

    PIL takes twice the time for 32x32 pixels; here all but some microseconds is zlib's, which holds no lock of the
    interpreter. Rows are not filtered: that makes photographs 4 % smaller and drawings 20 % larger at this size.
    """
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)),
              (b"IDAT", zlib.compress(rows.data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)


def check_drawable(shape: Sequence[int]) -> None:
    """Refuse what is no grey or RGB image."""
    if not drawable(shape):
        raise PidistillError(f"pictures need grey or RGB images, got the shape {tuple(shape)}; write an .npz instead")


def write_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write a grid of images as PNG; small ones are enlarged so that a row fills about 600 pixels."""
    check_drawable(images.shape[1:])
    grid = tile(images, columns)
    save_png(to_pil(grid, max(1, round(600 / grid.shape[2]))), path)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write PIL's picture as PNG, whole or not at all."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_bytes(path, content.getvalue())


def drawable(shape: Sequence[int]) -> bool:
    """Whether images of a shape can be drawn: grey or RGB."""
    return len(shape) == 3 and shape[0] in (1, 3)


def write_comparison(path: Path, teacher: Tensor, student: Tensor, columns: int = 16) -> None:
    """Write the teacher's images above the student's for the same noise, in pairs of rows, with captions at the side."""
    rows = [image for k in range(0, len(teacher), columns)
            for images in (teacher[k:k + columns], student[k:k + columns]) for image in pad_row(images, columns)]
    names = ["teacher", "student"] * -(-len(teacher) // columns)
    write_captioned(path, torch.stack(rows), columns, names, [])


def pad_row(images: Tensor, columns: int) -> Tensor:
    """Fill a row of images up with grey ones."""
    return torch.cat([images, images.new_zeros(columns - len(images), *images.shape[1:])])


def write_captioned(path: Path, images: Tensor, columns: int, rows: Sequence[str], heads: Sequence[str]) -> None:
    """Write a grid of images as PNG, with captions. Parameters: `caption_grid`."""
    save_png(caption_grid(images, columns, rows, heads), path)


ANIMATED = (".gif", ".webp")  # names of pictures that move end so


def save_animation(frames: Sequence[Image.Image], path: Path, milliseconds: int = 90, rest: int = 1800) -> None:
    """Write pictures as one that moves and begins again and again, whole or not at all. First and last stay for a while.

    A WebP loses nothing and has a quarter of a GIF's bytes; a GIF, which has 256 colours, gets 32 shades of grey where there
    are no others.

    path: ends as `ANIMATED` says.
    milliseconds: that a picture is shown. rest: how long the last one is, and the first for a third of that.
    """
    content = io.BytesIO()
    times = [rest // 3, *[milliseconds] * (len(frames) - 2), rest][-len(frames):]
    if path.suffix.lower() == ".webp":
        form, flat, options = "WEBP", list(frames), {"lossless": True, "quality": 90, "method": 4}
    else:
        grey, options = all(map(is_grey, frames)), {"optimize": True}
        form, flat = "GIF", [picture.convert("L").quantize(32) if grey else picture.quantize(256) for picture in frames]
    flat[0].save(content, format=form, save_all=True, append_images=flat[1:], duration=times, loop=0, **options)
    write_bytes(path, content.getvalue())


def is_grey(picture: Image.Image) -> bool:
    """Tell whether a picture is grey throughout."""
    red, green, blue = (np.asarray(band) for band in picture.convert("RGB").split())
    return bool((red == green).all() and (green == blue).all())


def caption_grid(images: Tensor, columns: int, rows: Sequence[str], heads: Sequence[str]) -> Image.Image:
    """Lay images out as a grid with captions.

    images: (N, C, H, W) in [-1, 1]. columns: of the grid.
    rows: the captions beside the rows, one each. heads: those above the columns, one each, or none.
    """
    rows, heads = [to_line(text) for text in rows], [to_line(text) for text in heads]  # a folder's name may have more
    grid = tile(images, columns)
    scale = max(1, round(900 / grid.shape[2]))
    inner, size = to_pil(grid, scale), images.shape[2] + 1
    font, top = ImageFont.load_default(13), 20 if heads else 0
    left = max(74, 12 + int(max((font.getlength(text) for text in rows), default=0)))
    picture = Image.new("RGB", (inner.width + left, inner.height + top), "white")
    picture.paste(inner.convert("RGB"), (left, top))
    draw = ImageDraw.Draw(picture)
    for r, text in enumerate(rows):
        draw.text((left - 6, top + (r + 0.5) * size * scale), text, "black", font, anchor="rm")
    for c, text in enumerate(heads):
        draw.text((left + (c + 0.5) * (images.shape[3] + 1) * scale, top / 2), text, "black", font, anchor="mm")
    return picture
