"""What the tests of exports share: students in folders, and a program that cannot import this package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

STRANGER = """
import sys
sys.modules["pidistill"] = None   # importing it fails
{program}
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Code that diffusers copies from a folder before it runs it goes where it is thrown away."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def stranger(tmp_path) -> Callable[..., str]:
    """Run a program in a fresh process that cannot import this package; gives what it prints."""
    def run(program: str, *arguments: str | Path) -> str:
        path = tmp_path / "stranger.py"
        path.write_text(STRANGER.format(program=program))
        done = subprocess.run([sys.executable, "-W", "ignore", str(path), *map(str, arguments)], capture_output=True,
                              text=True, timeout=300, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
