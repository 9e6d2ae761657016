"""Image files, folders and archives of them, whole, falsified or hostile; and what reading them ends in."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.files.datasets import open_images

NAMES = [f"0000{i // 3}/img{i:08d}.png" for i in range(5)]
LABELS = [2, 0, 1, 1, 0]
RECORD = {"labels": [[name, label] for name, label in zip(NAMES, LABELS)][::-1]}


def random_pixels(*shape: int) -> np.ndarray:
    """Draw random bytes, the same ones for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


COLOUR, GREY = random_pixels(5, 6, 8, 3), random_pixels(5, 6, 8)


def encode(image: Image.Image | np.ndarray, form: str = "png", **options) -> bytes:
    """Encode an image as PIL does."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """Encode a PNG of any header, whatever PIL would write.

    width, height: in pixels.
    depth: bits a channel.
    colour: the PNG's type of colour: 0 grey, 2 colour, 6 colour with transparency.
    data: the bytes before compression, a filter's byte at the start of every row.
    """
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(data)), \
             (b"IEND", b"")
    packed = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
              for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def make_folder(path, files: dict[str, bytes], record=None):
    """Write a folder of files, with `record` as its dataset.json."""
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    if record is not None:
        (path / "dataset.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def make_zip(path, files: dict[str, bytes], record=None, method: int = zipfile.ZIP_STORED):
    """Write a ZIP of files, with `record` as its dataset.json."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if record is not None:
            archive.writestr("dataset.json", record if isinstance(record, str) else json.dumps(record))
    return path


def make_npz(path, **arrays):
    """Write arrays as an NPZ file."""
    np.savez(path, **arrays)
    return path


def patch(path, **fields: int):
    """Falsify fields of the central record of an archive's only member."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    for field, value in fields.items():
        offset, form = {"flags": (8, "<H"), "packed": (20, "<I"), "size": (24, "<I")}[field]
        struct.pack_into(form, data, start + offset, value)
    path.write_bytes(data)
    return path


def read_all(path, batch: int = 2) -> torch.Tensor:
    """Read all images of a data set, (N, C, H, W) uint8."""
    return torch.cat(list(open_images(path).read_batches(batch)))


def expect_refusal(path, words: str, *where: str) -> str:
    """Expect that opening or reading ends in one line with the words, the path, and the names if any; give the line."""
    with pytest.raises(PidistillError) as caught:
        read_all(path)
    line = str(caught.value)
    assert "\n" not in line and re.search(words, line) and str(path) in line and all(name in line for name in where), line
    return line
