"""`pidistill sample`: images of a student (one evaluation each) or a teacher, as a grid, a folder of PNGs or an NPZ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pidistill.denoiser import Denoiser, choose_labels
from pidistill.errors import PidistillError
from pidistill.pictures import check_drawable, save_png, to_pil, write_grid
from pidistill.samplers import STEPS, Sampler, sample_teacher
from pidistill.student import Student
from pidistill.tensors import clip_images, quantise


def images_of(model: Student | Denoiser, seeds: list[int], labels: list[int] | None = None, *, batch_size: int = 250,
              sampler: str | Sampler = "heun", steps: int = STEPS) -> tuple[Tensor, Tensor | None]:
    """Images (N, C, H, W) in [-1, 1] and their labels (N,); labels default to those of the seeds."""
    y = choose_labels(labels, model.num_classes, seeds)
    if isinstance(model, Student):
        return model.sample(seeds, y, batch_size=batch_size), y
    return clip_images(sample_teacher(model, seeds, y, sampler=sampler, steps=steps, batch_size=batch_size)), y


def check_target(out: Path, shape: Sequence[int]) -> None:
    """Refuse what write_images could not write, before an hour of sampling."""
    if out.suffix not in ("", ".png", ".npz"):
        raise PidistillError(f"--out must end in .png (a grid) or .npz, or name a folder without a dot, got {out}")
    if out.suffix != ".npz":
        check_drawable(shape)


def write_images(out: Path, images: Tensor, seeds: list[int], labels: Tensor | None, columns: int | None = None) -> str:
    """Write to `out`: x.png is one grid, x.npz arrays, any other name a folder of SEED.png; returns what was written.

    The NPZ holds images (N, H, W, C) uint8 (float32 (N, *shape) for vectors), seeds and labels.
    """
    check_target(out, images.shape[1:])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".npz":
            pixels = quantise(images).permute(0, 2, 3, 1) if images.ndim == 4 else images
            arrays: dict[str, Any] = {"images": pixels.numpy(), "seeds": np.array(seeds)}
            np.savez_compressed(out, **arrays | ({} if labels is None else {"labels": labels.numpy()}))
            return f"{len(images)} images in {out}"
        if out.suffix == ".png":
            write_grid(out, images, columns or max(1, math.isqrt(len(images) - 1) + 1))
            return f"{len(images)} images in the grid {out}"
        out.mkdir(exist_ok=True)
        for old in out.glob("*.png"):  # the folder holds what this call drew; --force was asked for
            old.unlink()
        for seed, image in zip(seeds, images):
            save_png(to_pil(image), out / f"{seed:06d}.png")
        return f"{len(images)} images in the folder {out}"
    except OSError as error:
        raise PidistillError(f"cannot write {out}: {error.strerror or error}") from None
