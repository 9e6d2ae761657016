"""Where a file of weights or a result comes from."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch


def find_commit() -> str:
    """Commit of the checkout that the package runs from, `-dirty` with uncommitted changes; `unknown` when installed."""
    here = Path(__file__).parent
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def list_versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    return {"pidistill": importlib.metadata.version("pidistill"), "torch": torch.__version__, "numpy": numpy.__version__,
            "python": platform.python_version()}


def collect_provenance(num: int, first_seed: int, repeats: int) -> dict[str, Any]:
    """What must be known to repeat the numbers of `repeats` sets of `num` seeds each, the first from `first_seed` on."""
    ranges = [f"{first_seed + k * num}-{first_seed + (k + 1) * num - 1}" for k in range(repeats)]
    return {"seeds": ranges, "commit": find_commit(), "versions": list_versions(), "threads": torch.get_num_threads()}
