"""`hf:OWNER/NAME`: a folder of a repository on the Hugging Face hub, from its local cache or downloaded there.

Configurations and safetensors are fetched, and nothing else: no code, and no file that would be executed when it is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError, words_of
from pidistill.core.registry import suggest_choices
from pidistill.files.folders import split_options

PREFIX = "hf:"
FETCHED = ["*.json", "*.safetensors"]
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def fetch_repository(spec: str) -> Path:
    """Fetch `hf:OWNER/NAME[,revision=R]` and give its folder. Raises PidistillError in one line.

    What is in the local cache is taken from there, so that no network is needed the second time.
    """
    name, options = split_options(spec.removeprefix(PREFIX))
    for option in options:
        if not option.startswith("revision="):
            raise suggest_choices("option of hf:OWNER/NAME", option.partition("=")[0], ["revision=..."])
    if not REPOSITORY.fullmatch(name):
        raise PidistillError(f"{spec} names no repository of the Hugging Face hub; write hf:OWNER/NAME")
    revision = options[-1].partition("=")[2] if options else None
    library = import_hub()
    try:
        return Path(library.snapshot_download(name, revision=revision, allow_patterns=FETCHED, local_files_only=True))
    except Exception:  # not in the cache: each version of the library says so with another class
        from pidistill.core.console import console  # which every `sample` would wait for

        console.print(f"downloading {name} from the Hugging Face hub (configurations and weights)", soft_wrap=True)
    try:
        return Path(library.snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # no network, no such repository, no permission
        raise PidistillError(f"cannot download {name} ({words_of(error)}); put its files into a folder and name that"
                             ) from None


def push_folder(folder: Path, name: str, message: str) -> str:
    """Upload a folder to a repository of the hub, which is made, private, if it is not there; gives its address.

    Raises PidistillError in one line.
    """
    check_repository(name)
    api = import_hub().HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))
    except Exception as error:  # no network, no permission
        raise PidistillError(f"{folder} is written, and was not uploaded to {name}: {words_of(error)}") from None


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository. Raises PidistillError."""
    if not REPOSITORY.fullmatch(name):
        raise PidistillError(f"--push must name a repository of the Hugging Face hub, OWNER/NAME, got {name}")


def import_hub() -> Any:
    """Import huggingface_hub. Raises PidistillError with what to install."""
    try:
        import huggingface_hub
    except ImportError:
        raise PidistillError("this needs huggingface_hub, which is not installed: pip install 'pidistill[hub]'") from None
    return huggingface_hub
