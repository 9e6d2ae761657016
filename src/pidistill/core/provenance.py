"""The provenance of a result says where it comes from: the code's commit, the versions of libraries, and the seeds."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch


def find_commit() -> str:
    """Ask git for the commit of the checkout that the package runs from.

    The commit ends in `-dirty` if there are uncommitted changes; it is `unknown` when the package is installed.
    """
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def list_versions() -> dict[str, str]:
    """List the versions of this package and of what its numbers depend on."""
    return {"pidistill": importlib.metadata.version("pidistill"), "torch": torch.__version__, "numpy": numpy.__version__,
            "python": platform.python_version()}


def collect_provenance(num: int, first_seed: int, repeats: int) -> dict[str, Any]:
    """Collect what must be known to repeat numbers: seeds, commit, versions and the number of threads.

    num: how many seeds a set has.
    first_seed: where the first set begins; the others follow it without a gap.
    repeats: how many sets there are.
    """
    ranges = [f"{first_seed + k * num}-{first_seed + (k + 1) * num - 1}" for k in range(repeats)]
    return {"seeds": ranges, "commit": find_commit(), "versions": list_versions(), "threads": torch.get_num_threads()}
