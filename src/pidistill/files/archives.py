"""ZIP archives, and arrays in NPZ files, that may be hostile: nothing is extracted, unpickled or allocated on a claim."""

from __future__ import annotations

import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from pidistill.core.errors import PidistillError
from pidistill.files.reading import open_file

RATIO, LARGE, LARGE_RATIO = 1100, 256 * 10**6, 100  # deflate reaches 1032:1, which large files of real data never do
MEMBERS = 2_000_000  # ImageNet has 1.3 million
ESCAPES = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:")  # up, absolute, a drive


def blame(where: str, words: str) -> PidistillError:
    return PidistillError(f"{where}: {words}")


@contextmanager
def catch_damage(where: str) -> Iterator[None]:
    """Whatever damaged bytes end in becomes one line that names the place."""
    try:
        yield
    except PidistillError:
        raise
    except Exception as error:  # a damaged or hostile file can end in almost any of them
        detail = getattr(error, "strerror", None) or (str(error) if type(error) is OSError else type(error).__name__)
        raise blame(where, f"cannot be read: damaged, truncated or of another format ({detail})") from None


def open_archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """A ZIP file and its members, folders left out. Refuses names that lead out of it, links, and names that come twice."""
    with catch_damage(str(path)):
        archive = zipfile.ZipFile(open_file(path))
        files = [info for info in archive.infolist() if not info.filename.endswith("/")]
        if len(files) > MEMBERS:
            raise blame(str(path), f"holds {len(files)} members, more than {MEMBERS}")
        for info in files:
            if ESCAPES.search(info.filename) or "\0" in info.orig_filename:
                raise blame(str(path), f"the name {info.orig_filename[:200]!r} leads out of the archive; pack it with "
                                       "relative names")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise blame(str(path), f"{info.filename[:200]} is a link; archive the file itself")
        members = {info.filename: info for info in files}
        if len(members) < len(files):
            raise blame(str(path), "holds two members of the same name")
        return archive, members


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, limit: int | None = None) -> IO[bytes]:
    """Opened for reading, if it can hold what it says. Other methods than deflate have no such bound."""
    if info.flag_bits & 1:
        raise blame(where, "encrypted; archive it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise blame(where, "must be stored or deflated, not compressed by another method")
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else RATIO if info.file_size <= LARGE else LARGE_RATIO
    if info.file_size > ratio * min(info.compress_size, archive.start_dir):
        raise blame(where, f"says it holds {info.file_size} bytes, more than its {info.compress_size} can")
    if limit is not None and info.file_size > limit:
        raise blame(where, f"larger than {limit // 10**6} MB")
    return archive.open(info)


def read_array_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array that fills its member exactly."""
    with catch_damage(where), warnings.catch_warnings(action="ignore"), open_member(archive, info, where) as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
        if dtype.hasobject:
            raise blame(where, "an array of Python objects, which is never unpickled")
        size = dtype.itemsize
        for length in shape:
            size *= max(int(length), 0)
        if file.tell() + size != info.file_size:
            raise blame(where, f"its header says {dtype} {shape}, which does not fit its {info.file_size} bytes")
        return shape, dtype


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    """To be called after `array_header`, which refuses what would not fit."""
    with catch_damage(where), warnings.catch_warnings(action="ignore"), open_member(archive, info, where) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the wanted arrays that an NPZ file holds."""
    archive, members = open_archive(path)
    found = {}
    with archive:
        for key in wanted:
            if info := members.get(f"{key}.npy"):
                read_array_header(archive, info, f"{path}: {key}")
                found[key] = read_array(archive, info, f"{path}: {key}")
    return found
