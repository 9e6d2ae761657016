"""Images and labels in an NPZ file: which array is which, and which of its axes is which."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.files.archives import blame, open_archive, read_array, read_array_header

NO_LABELS = ("mu", "sigma", "mu_s", "sigma_s", "seeds")  # ADM's statistics beside its images, and what `sample` adds


def read_images(path: Path) -> tuple[np.ndarray, Tensor | None]:
    """Read images (N, H, W, C) uint8 and their labels (N,) int64, or None, from an .npz, as `open_images` describes it.

    Axes that are not a picture's, and arrays that are not read, are said in a line. Raises PidistillError in one line.
    """
    archive, members = open_archive(path)
    key = next((key for key in ("images", "arr_0", "x", "data") if f"{key}.npy" in members), None)
    if key is None:
        names = ", ".join(sorted(name.removesuffix(".npy")[:40] for name in members)[:5])
        raise blame(str(path), f"holds no array `images`, `arr_0`, `x` or `data`; it holds {names or 'none'}")
    shape, dtype = read_array_header(archive, members[f"{key}.npy"], f"{path}: {key}")
    if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape) < 1:
        hint = "; convert them, from 0 to 255: np.uint8(255 * x + 0.5) of x in [0, 1]" if dtype.kind == "f" else ""
        raise blame(f"{path}: {key}", "images must be uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W), got "
                                       f"{dtype} {shape}{hint}")
    images = read_array(archive, members[f"{key}.npy"], f"{path}: {key}")
    images = images[..., None] if len(shape) == 3 else np.moveaxis(images, find_channels(shape), -1)
    length, height, width, channels = images.shape
    if channels not in (1, 3) or (len(shape) == 3 and width in (1, 3, 4)):  # pictures of another kind, or other axes
        processes.say(f"{path}: {key} of shape {shape} is read as {length} images of {width}x{height} in {channels} "
                      f"channel{'s' * (channels > 1)}")
    label_key, labels = _read_labels(path, archive, members, length)
    say_gaps(path, labels)
    if rest := sorted({name.removesuffix(".npy") for name in members} - {key, label_key, *NO_LABELS}):
        names = ", ".join(name[:40] for name in rest[:5]) + (", ..." if len(rest) > 5 else "")
        processes.say(f"{path}: {len(rest)} of its arrays are not read ({names}); labels are {length} integers called "
                      "`labels`, `arr_1` or `y`")
    return images, labels


def say_gaps(path: str | Path, labels: Tensor | None) -> None:
    """Say which of the classes, 0 to the largest label, have no image: a model would draw them, and has never seen one."""
    if labels is None:
        return
    seen, largest = labels.unique(), int(labels.max())
    if len(seen) <= largest:
        first = next(k for k in range(largest) if k >= len(seen) or seen[k] != k)
        processes.say(f"{path}: {largest + 1 - len(seen)} of the labels 0 to {largest} have no image, first {first}; labels "
                      "are numbered from 0")


def find_channels(shape: tuple[int, ...]) -> int:
    """Find the axis of channels in an array of images: the last of four, or the second, where that alone makes sense.

    That is where the second is 1 or 3 and the last is neither, or where images are square so and not otherwise.
    """
    _, a, b, c = shape
    return 1 if c not in (1, 3) and (a in (1, 3) or a != b == c) else 3


def _read_labels(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo],
                 length: int) -> tuple[str, Tensor | None]:
    """Read the labels (N,) int64 of an .npz of N = length images, and give their name; None if it has none."""
    for key in ("labels", "arr_1", "y"):
        if info := members.get(f"{key}.npy"):
            shape, dtype = read_array_header(archive, info, f"{path}: {key}")
            if shape == (length,) and dtype.kind in "iu":
                labels = read_array(archive, info, f"{path}: {key}")
                if labels.min() < 0 or labels.max() >= 2**63:
                    raise blame(f"{path}: {key}", "labels must be integers from 0")
                return key, torch.from_numpy(labels.astype(np.int64))
            if key != "arr_1":  # which has no name of its own, and may be anything
                raise blame(f"{path}: {key}", f"labels must be {length} integers, got {dtype} {shape}")
    return "", None
