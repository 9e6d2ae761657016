"""`hf:NAME`: images of a data set of the Hugging Face hub, or of a folder, that the library `datasets` finds and fetches.

It gives the bytes of the image files, which are decoded as those of any other data set. Code of a data set is not run: the
library has none of it since its version 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core.errors import PidistillError, words_of
from pidistill.core.registry import suggest_choices
from pidistill.files.folders import split_options
from pidistill.files.reading import read_bytes

OLDEST = 4  # version of the library
OPTIONS = {"config": None, "split": "train", "image": None, "label": None, "revision": None}
Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Rows:
    """Images of a data set: how many, their files' bytes, their labels (N,) int64 or None, and the data's licence.

    read: index and the limit of bytes -> the bytes of an image file.
    """

    num: int
    read: Read
    labels: Tensor | None
    licence: str


def open_rows(spec: str) -> Rows:
    """Open `hf:NAME[,split=train][,config=C][,image=COLUMN][,label=COLUMN][,revision=R]`.

    NAME: OWNER/NAME on the hub, or a folder. The columns are found where one alone holds images; labels are the first column
    of classes, and `label=none` leaves them out. Raises PidistillError in one line.
    """
    name, pairs = split_options(spec.removeprefix("hf:"))
    options: dict[str, Any] = dict(OPTIONS)
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or key not in options:
            raise suggest_choices("option of hf:NAME", key, [f"{option}=..." for option in OPTIONS])
        options[key] = value
    if not name:
        raise PidistillError(f"{spec!r} names no data set; write hf:OWNER/NAME")
    library = import_library()
    try:
        table = library.load_dataset(name, options["config"], split=options["split"], revision=options["revision"])
    except Exception as error:  # of the library, of the network, and of files in any state
        raise PidistillError(f"hf:{name} cannot be had: {type(error).__name__}: {words_of(error)}") from None
    image = find_column(table, options["image"], library.Image, "image", spec)
    if len(table) == 0:
        raise PidistillError(f"{spec} has no images in the split {options['split']}")
    label = options["label"] or next(iter(list_columns(table, library.ClassLabel)), "none")
    files = table.cast_column(image, library.Image(decode=False))

    def read(index: int, limit: int) -> bytes:
        row = files[index][image] or {}
        data = row["bytes"] if row.get("bytes") is not None else read_bytes(Path(row.get("path") or ""), limit)
        if len(data) > limit:
            raise PidistillError(f"{spec}: image {index} has {len(data)} bytes, more than {limit}")
        return data

    licence = table.info.license or "as the data set's page says"
    labels = None if label == "none" else take_labels(table, label, spec)
    return Rows(len(table), read, labels, f"hf:{name}: {licence}")


def import_library() -> Any:
    """Import Hugging Face's `datasets`. Raises PidistillError if it is not there, or is one that would run code."""
    try:
        import datasets
    except ImportError:
        raise PidistillError("hf:NAME needs the package datasets: pip install 'pidistill[hf]'") from None
    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise PidistillError(f"hf:NAME needs datasets {OLDEST} or newer, which runs no code of a data set; this is "
                             f"{datasets.__version__}: pip install -U datasets")
    return datasets


def list_columns(table: Any, kind: type) -> list[str]:
    """List the columns whose feature is of a kind."""
    return [name for name, feature in table.features.items() if isinstance(feature, kind)]


def find_column(table: Any, asked: str | None, kind: type, option: str, spec: str) -> str:
    """Find the column of a kind that is asked for, or the only one. Raises PidistillError, which names those there are.

    option: that asks for it. spec: of the data set, for the error.
    """
    known = list_columns(table, kind)
    if asked in known or (asked is None and len(known) == 1):
        return asked or known[0]
    raise PidistillError(f"{spec} has {'several columns' if known and not asked else 'no such column'} of images"
                         f"{f', {asked}' if asked else ''}; {option}=COLUMN names one of {', '.join(known) or 'none'} (all: "
                         f"{', '.join(table.features)})")


def take_labels(table: Any, column: str, spec: str) -> Tensor:
    """Read labels (N,) int64 from 0. Raises PidistillError for anything else."""
    if column not in table.features:
        raise suggest_choices(f"column of {spec}", column, list(table.features))
    labels = np.asarray(list(table[column]))
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
        raise PidistillError(f"{spec}: the labels in {column} must be integers from 0 for every image; label=none leaves "
                             "them out")
    return torch.from_numpy(labels.astype(np.int64))
