"""Grids of images."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.tensors import quantise


def tile(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """(N, C, H, W) in [-1, 1] -> one picture (C, H', W'), rows of `columns`, separated by mid-grey lines."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = torch.zeros(c, rows * (h + gap) + gap, columns * (w + gap) + gap)
    for i, image in enumerate(images.float().cpu()):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        canvas[:, y:y + h, x:x + w] = image
    return canvas


def to_pil(image: Tensor, scale: int = 1) -> Image.Image:
    """(C, H, W) in [-1, 1], C = 1 or 3 -> PIL image, enlarged by a whole factor."""
    pixels = quantise(image).cpu().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST) if scale > 1 else picture


def check_drawable(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise PidistillError(f"pictures need grey or RGB images, got the shape {tuple(shape)}; write an .npz instead")


def write_grid(path: Path, images: Tensor, columns: int) -> None:
    """PNG of a grid; small images are enlarged so that a row fills about 600 pixels."""
    check_drawable(tuple(images.shape[1:]))
    grid = tile(images, columns)
    save_png(to_pil(grid, max(1, round(600 / grid.shape[2]))), path)


def save_png(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, format="PNG")
    except OSError as error:
        raise PidistillError(f"cannot write {path}: {error.strerror or error}") from None
