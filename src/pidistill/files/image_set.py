"""A set of images is what a training draws from and a measurement reads: in memory, or decoded image by image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import dequantise, quantise

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that stay in memory
PIXELS = dequantise(torch.arange(256)).numpy()  # of every byte


class ImageSet:
    """N images of one shape, in memory or decoded when they are read. A set is never changed after it is made.

    shape: (C, H, W) of every image.
    labels: (N,) int64, or None.
    licence: the data's licence, for the provenance of what is trained on them.
    """

    def __init__(self, length: int, shape: tuple[int, ...], decode: Callable[[int], np.ndarray],
                 labels: Tensor | None = None, licence: str = "unknown", *, keep: bool = False) -> None:
        """Take N images.

        length: N.
        shape, labels, licence: as the class has them.
        decode: gives the image of an index, (H, W, C) uint8, or float32 in [-1, 1].
        keep: what `sample` has decoded stays in memory, if all N images fit in MEMORY_LIMIT.
        """
        self.shape, self.labels, self.licence = shape, labels, licence
        self._length, self._decode, self._keep = length, decode, keep and length * math.prod(shape) <= MEMORY_LIMIT
        self._kept: dict[int, np.ndarray] = {}  # (C, H, W) uint8

    @classmethod
    def of(cls, images: Tensor, labels: Tensor | None = None, licence: str = "unknown") -> ImageSet:
        """Make a set of images (N, C, H, W) float32 in [-1, 1]. Raises PidistillError for other types and shapes.

        labels: (N,) int64, from 0. licence: of the data.
        """
        if images.dtype != torch.float32 or images.ndim != 4 or not images.numel():
            raise PidistillError(f"images must be float32 of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1] or labels.min() < 0):
            raise PidistillError(f"labels must be {len(images)} int64 from 0, got {labels.dtype} {tuple(labels.shape)}")
        pixels = images.detach().cpu().permute(0, 2, 3, 1).numpy()
        return cls(len(images), tuple(images.shape[1:]), pixels.__getitem__, labels, licence)

    def __len__(self) -> int:
        return self._length

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageSet:
        """Give the set itself: copies of an objective draw from the same images."""
        return self

    @property
    def num_classes(self) -> int:
        """The number of classes: the largest label plus 1, and 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def read(self, index: int) -> np.ndarray:
        """Give one image, (H, W, C) uint8. Raises PidistillError if it cannot be decoded, or is not of the set's shape."""
        if len(self.shape) != 3:
            raise PidistillError(f"vectors of shape {self.shape} are no images; only a training takes them")
        image = self._decode(index)
        return image if image.dtype == np.uint8 else quantise(torch.from_numpy(image)).numpy()

    def read_batches(self, batch: int) -> Iterator[Tensor]:
        """Yield uint8 batches (B, C, H, W); the last may be smaller. Of a folder or .zip only one batch is in memory."""
        if batch < 1:
            raise PidistillError(f"the batch must be at least 1, got {batch}")
        for start in range(0, len(self), batch):
            images = np.stack([self.read(i) for i in range(start, min(start + batch, len(self)))])
            yield torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def sample(self, index: int, flip: bool = False) -> dict[str, Any]:
        """Give one image as training takes it: y (C, H, W) float32 in [-1, 1], and labels, an int64, if there are any.

        flip: mirrored, left to right. Raises PidistillError as `read` does, and for a mirrored vector.
        """
        if (image := self._kept.get(index)) is None:
            image = np.moveaxis(self._decode(index), -1, 0).copy()
            if self._keep:
                self._kept[index] = image
        if flip:
            if image.ndim != 3:
                raise PidistillError(f"flip: vectors of shape {self.shape} have no left and right; leave it out")
            image = np.ascontiguousarray(image[:, :, ::-1])
        y = PIXELS.take(image) if image.dtype == np.uint8 else image
        return {"y": y} if self.labels is None else {"y": y, "labels": np.int64(self.labels[index])}
