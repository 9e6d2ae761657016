"""ZIP archives, and arrays in NPZ files, may be hostile: nothing is extracted, unpickled or allocated on a claim."""

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
    """Make the error that names a file, or a member of one, and says in words what is wrong with it."""
    return PidistillError(f"{where}: {words}")


@contextmanager
def catch_damage(where: str) -> Iterator[None]:
    """Turn whatever error damaged bytes end in into a PidistillError of one line that names the place."""
    try:
        yield
    except PidistillError:
        raise
    except Exception as error:  # a damaged or hostile file can end in almost any of them
        detail = getattr(error, "strerror", None) or (str(error) if type(error) is OSError else type(error).__name__)
        raise blame(where, f"cannot be read: damaged, truncated or of another format ({detail})") from None


def open_archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open a ZIP file; give it and its members by name, with /, folders left out.

    Raises PidistillError for names that lead out of the archive, for links, and for names that come twice.
    """
    with catch_damage(str(path)):
        archive = zipfile.ZipFile(open_file(path))
        files = [(_read_name(info), info) for info in archive.infolist() if not _read_name(info).endswith("/")]
        if len(files) > MEMBERS:
            raise blame(str(path), f"holds {len(files)} members, more than {MEMBERS}")
        for _, info in files:
            if ESCAPES.search(info.filename) or "\0" in info.orig_filename:
                raise blame(str(path), f"the name {info.orig_filename[:200]!r} leads out of the archive; pack it with "
                                       "relative names")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise blame(str(path), f"{info.filename[:200]} is a link; archive the file itself")
        members = dict(files)
        if len(members) < len(files):
            raise blame(str(path), "holds two members of the same name")
        return archive, members


def _read_name(info: zipfile.ZipInfo) -> str:
    # Older .NET on Windows wrote a\b.png; elsewhere \ is a letter of a name.
    return info.filename.replace("\\", "/") if info.create_system == 0 else info.filename


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, limit: int | None = None) -> IO[bytes]:
    """Open a member of an archive for reading, if its packed bytes can hold as much as the archive claims.

    Other methods of compression than deflate have no such bound, and are refused. Raises PidistillError in one line.

    archive: the archive.
    info: its record of the member.
    where: the member's name, for errors.
    limit: the most bytes that the member may hold; None for any number.
    """
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
    """Read the shape and the type of an array in an NPZ file; the array must fill its member exactly.

    archive: the NPZ file.
    info: its record of the member.
    where: the array's name, for errors.
    """
    with catch_damage(where), warnings.catch_warnings(action="ignore"), open_member(archive, info, where) as file:
        first = np.lib.format.read_magic(file) == (1, 0)  # the format's version
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(file)
        if dtype.hasobject:
            raise blame(where, "an array of Python objects, which is never unpickled")
        size = dtype.itemsize
        for length in shape:
            size *= max(int(length), 0)
        if file.tell() + size != info.file_size:
            raise blame(where, f"its header says {dtype} {shape}, which does not fit its {info.file_size} bytes")
        return shape, dtype


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    """Read an array of an NPZ file; call `read_array_header` before, which refuses what would not fit."""
    with catch_damage(where), warnings.catch_warnings(action="ignore"), open_member(archive, info, where) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read those of the named arrays that an NPZ file holds."""
    archive, members = open_archive(path)
    arrays = {}
    with archive:
        for key in names:
            if info := members.get(f"{key}.npy"):
                read_array_header(archive, info, f"{path}: {key}")
                arrays[key] = read_array(archive, info, f"{path}: {key}")
    return arrays
