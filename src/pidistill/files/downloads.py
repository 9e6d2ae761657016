"""Published files are fetched when they are first needed, by default into torch.hub's cache, and checked by their hash."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from filelock import FileLock
from rich.progress import wrap_file

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.files.reading import sha256

SCHEMES = ("https",)
DOWNLOAD_LIMIT, CHUNK = 20 * 10**9, 2**20  # bytes of a file; of a piece of it
TRIES, SILENCE, PAUSE = 4, 30.0, 1.0  # seconds until a silent connection is given up; between tries


def fetch_published(url: str, what: str, key: str, folder: Path | None = None) -> Path:
    """Give the path of a published file, which is downloaded if it is not there.

    The file is checked if its name carries the start of its SHA-256, `NAME-HASH.EXT`, as those of torchvision and
    torch-fidelity do. Raises PidistillError in one line; offline, the line says which file goes where.

    url: where the file is published.
    what: what the file is, for messages.
    key: the configuration key that names another place, with its value, for errors.
    folder: where the file lies; torch.hub's cache by default.
    """
    name = url.rsplit("/", 1)[1]
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise PidistillError(f"{what}: {name!r} is no name of a published file; name a file with {key}")
    path = (folder or Path(torch.hub.get_dir()) / "checkpoints") / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # several processes of a run download once
            if not path.exists():
                console.print(f"downloading {what} from {url} to {path}", soft_wrap=True)
                download(url, path, parse_hash(path))
                if not parse_hash(path):
                    console.print(f"{what} is unchecked, since its publisher gives no hash; its SHA-256 is {sha256(path)}",
                                  soft_wrap=True)
    except (OSError, HTTPException, ValueError) as error:  # no network, full disk, another hash
        raise PidistillError(f"cannot download {what} ({error}); put the file from {url} to {path}, or name it with {key}") \
            from None
    check_hash(path)
    return path


def parse_hash(path: Path) -> str | None:
    """Parse the start of a SHA-256 out of a file's name `NAME-HASH.EXT`; None if the name carries none."""
    match = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    return match[1] if match else None


def check_hash(path: Path) -> None:
    """Refuse a file whose name carries a hash that is not the start of its SHA-256."""
    expected = parse_hash(path)
    if expected:
        digest = sha256(path)
        if not digest.startswith(expected):
            raise PidistillError(f"{path} is damaged: its SHA-256 starts with {digest[:8]}, its name says {expected}; "
                                 "delete it")


def download(url: str, path: Path, expected: str | None = None) -> None:
    """Download a file, which is there in the end whole and with the expected start of its SHA-256, or not at all.

    An interrupted download, whose bytes are in PATH.part, is continued if the server says that its file is still the same.
    Raises OSError or HTTPException.

    url: the file's address.
    path: the file to write.
    expected: the start of its SHA-256, or None.
    """
    part, mark = Path(f"{path}.part"), Path(f"{path}.part.mark")
    for tries_left in range(TRIES - 1, -1, -1):
        resumed = part.exists()
        try:
            receive(url, part, mark)
            digest = sha256(part)
            if not digest.startswith(expected or ""):
                part.unlink()
                mark.unlink(missing_ok=True)
                raise WrongHash(f"its SHA-256 starts with {digest[:8]}, its name says {expected}")
            part.replace(path)
            mark.unlink(missing_ok=True)
            return
        except (OSError, HTTPException) as error:
            if not tries_left or not (resumed if isinstance(error, WrongHash) else is_transient(error)):
                raise
            time.sleep(PAUSE * (TRIES - tries_left))


class WrongHash(OSError):
    """The SHA-256 of a downloaded file is not the one that its name carries."""


def is_transient(error: Exception) -> bool:
    """Say whether to try again: after a broken or silent connection or a server in trouble, but not without a network."""
    if isinstance(error, HTTPError):
        return error.code in (408, 416, 429) or error.code >= 500
    return isinstance(error, ConnectionError | TimeoutError | HTTPException) and not isinstance(error, URLError)


def receive(url: str, part: Path, mark: Path) -> None:
    """Receive a file's bytes, after those that are there already. Raises OSError or HTTPException.

    url: the file's address.
    part: the file that the bytes are added to.
    mark: a file that holds the server's name for the version that the bytes are of.
    """
    size = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"Range": f"bytes={size}-", "If-Range": mark.read_text()} if size else {}
    opener = build_opener(Redirects)
    try:
        response: HTTPResponse = opener.open(Request(check_scheme(url), headers=headers), timeout=SILENCE)
    except HTTPError as error:
        if error.code == 416:  # there is nothing after what we have: of another file, or all of this one
            if error.headers.get("Content-Range") == f"bytes */{size}" and is_same_version(error.headers, mark):
                return
            part.unlink()
        raise
    with response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        if response.status == 206:
            sent = re.fullmatch(r"bytes (\d{1,15})-\d+/(\d{1,15})", response.headers.get("Content-Range") or "")
            if not sent or int(sent[1]) != size or not is_same_version(response.headers, mark):
                part.unlink()
                raise ConnectionError("the server sent another part than it was asked for, or of another file")
            total = int(sent[2])
        else:  # it does not know ranges, or its file has changed
            size = 0
        if (total or 0) > DOWNLOAD_LIMIT:
            raise OSError(f"{total} bytes, more than {DOWNLOAD_LIMIT}")
        if total and total - size > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not size:
            mark.unlink(missing_ok=True)
        body = wrap_file(cast(BinaryIO, response), total=(total or size) - size, description=part.stem, console=console,
                         disable=not console.is_terminal)
        with part.open("ab" if size else "wb") as file, body as incoming:
            if version := find_version(response.headers):
                mark.write_text(version)
            try:
                while chunk := incoming.read(CHUNK):
                    size += len(chunk)
                    if size > DOWNLOAD_LIMIT:
                        raise OSError(f"more than {DOWNLOAD_LIMIT} bytes")
                    file.write(chunk)
            finally:
                file.flush()
                os.fsync(file.fileno())
        if total is not None and size != total:
            raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def find_version(headers: Any) -> str | None:
    """Find the server's name for this version of its file, for If-Range: a strong ETag, else its date, else None."""
    tag = headers.get("ETag") or ""
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def is_same_version(headers: Any, mark: Path) -> bool:
    """Say whether the server's file is of the version that `mark` holds; headers without a version agree with any."""
    return mark.exists() and find_version(headers) in (None, mark.read_text())


def check_scheme(url: str) -> str:
    """Give the address back, or raise OSError if it is not of https."""
    if urlsplit(url).scheme not in SCHEMES:
        raise OSError(f"only https: is fetched, not {url[:100]}")
    return url


class Redirects(HTTPRedirectHandler):
    """A handler that follows redirects only to addresses that would be fetched themselves."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        return super().redirect_request(req, fp, code, msg, headers, check_scheme(newurl))
