"""Published weight files: in torch.hub's cache, or fetched there when first needed, checked by their hash."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from filelock import FileLock

from pidistill.errors import PidistillError
from pidistill.headers import sha256
from pidistill.progress import console


def published(url: str, what: str, key: str, folder: Path | None = None) -> Path:
    """The file behind `url` in a folder, torch.hub's cache by default, downloaded if it is not there.

    Checked where the file's name carries the start of its SHA-256, `NAME-HASH.EXT`, as those of torchvision and
    torch-fidelity do. Offline, the error says which file goes where; key: the configuration key that names another place.
    """
    path = (folder or Path(torch.hub.get_dir()) / "checkpoints") / url.rsplit("/", 1)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # several processes of a run download once
            if not path.exists():
                console.print(f"downloading {what} from {url} to {path}", soft_wrap=True)
                expected = hash_in_name(path)
                torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)  # renames a temporary file at the end
    except (OSError, RuntimeError) as error:  # no network, full disk; RuntimeError: another hash
        raise PidistillError(f"cannot download {what} ({error}); put the file from {url} to {path}, or name it with {key}") \
            from None
    check_hash(path)
    return path


def hash_in_name(path: Path) -> str | None:
    match = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    return match[1] if match else None


def check_hash(path: Path) -> None:
    """Refuse a file whose name carries a hash that is not the start of its SHA-256."""
    expected = hash_in_name(path)
    if expected:
        found = sha256(path)
        if not found.startswith(expected):
            raise PidistillError(f"{path} is damaged: its SHA-256 starts with {found[:8]}, its name says {expected}; "
                                 "delete it")
