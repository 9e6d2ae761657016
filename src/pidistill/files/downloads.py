"""Published files: in a folder, by default torch.hub's cache, or fetched there when first needed, checked by their hash."""

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
    """The file behind `url` in a folder, torch.hub's cache by default, downloaded if it is not there.

    Checked where the file's name carries the start of its SHA-256, `NAME-HASH.EXT`, as those of torchvision and
    torch-fidelity do. Offline, the error says which file goes where; key: the configuration key that names another place.
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
    match = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    return match[1] if match else None


def check_hash(path: Path) -> None:
    """Refuse a file whose name carries a hash that is not the start of its SHA-256."""
    expected = parse_hash(path)
    if expected:
        found = sha256(path)
        if not found.startswith(expected):
            raise PidistillError(f"{path} is damaged: its SHA-256 starts with {found[:8]}, its name says {expected}; "
                                 "delete it")


def download(url: str, path: Path, expected: str | None = None) -> None:
    """Download to `path`, which is there whole and with the expected start of its SHA-256, or not at all.

    What an interrupted download left in PATH.part is continued, if the server says that its file is still the same.
    Raises OSError or HTTPException.
    """
    part, mark = Path(f"{path}.part"), Path(f"{path}.part.mark")
    for left in range(TRIES - 1, -1, -1):
        resumed = part.exists()
        try:
            receive(url, part, mark)
            found = sha256(part)
            if not found.startswith(expected or ""):
                part.unlink()
                mark.unlink(missing_ok=True)
                raise WrongHash(f"its SHA-256 starts with {found[:8]}, its name says {expected}")
            part.replace(path)
            mark.unlink(missing_ok=True)
            return
        except (OSError, HTTPException) as error:
            if not left or not (resumed if isinstance(error, WrongHash) else is_transient(error)):
                raise
            time.sleep(PAUSE * (TRIES - left))


class WrongHash(OSError):
    pass


def is_transient(error: Exception) -> bool:
    """Whether to try again: a broken or silent connection and a server in trouble, but not where there is no network."""
    if isinstance(error, HTTPError):
        return error.code in (408, 416, 429) or error.code >= 500
    return isinstance(error, ConnectionError | TimeoutError | HTTPException) and not isinstance(error, URLError)


def receive(url: str, part: Path, mark: Path) -> None:
    """The file behind `url` to `part`, after what is there of it. mark: the server's name for that version of the file."""
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
    """What names this version of the file for If-Range: a strong ETag, else its date; nothing if there is neither."""
    tag = headers.get("ETag") or ""
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def is_same_version(headers: Any, mark: Path) -> bool:
    return mark.exists() and find_version(headers) in (None, mark.read_text())


def check_scheme(url: str) -> str:
    if urlsplit(url).scheme not in SCHEMES:
        raise OSError(f"only https: is fetched, not {url[:100]}")
    return url


class Redirects(HTTPRedirectHandler):
    """Only to addresses that would be fetched themselves."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        return super().redirect_request(req, fp, code, msg, headers, check_scheme(newurl))
