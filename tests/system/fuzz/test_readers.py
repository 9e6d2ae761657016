"""Damaged and hostile files end in one printable line or a sound result: nothing runs, and time and memory are bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidistill.core.errors import PidistillError
from tests.system.fuzz.mutate import DAMAGE, damaged
from tests.system.fuzz.readers import READERS, Reader, encoded

SECONDS, MEMORY = 5, 150 * 10**6  # of a single file; all of them have some thousand bytes
FEW, MANY = 200, 2000
HURRY = {"configuration": 40}


def fuzz(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))


def peak(reset: bool = False) -> int:
    """Bytes of memory that this process had at most, since it was last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def one_line(read: Callable[[], Any], sound: Callable[[Any], Any] = lambda result: True) -> str | None:
    """The line in which reading ends, or None for a sound result."""
    began, before = time.process_time(), peak(reset=True)
    try:
        result = read()
    except PidistillError as error:
        line = str(error)
        assert line.isprintable() and 0 < len(line) < 600, line
        return line
    else:
        assert sound(result), result
        return None
    finally:
        assert time.process_time() - began < SECONDS
        assert peak() - before < MEMORY


def place(reader: Reader, folder: Path) -> Path:
    path = folder / reader.name
    path.parent.mkdir(exist_ok=True)
    if reader.name == "one/dataset.json":
        (path.parent / "a.png").write_bytes(encoded("png"))
    return path


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name, tmp_path):
    """Else nothing below would mean anything."""
    for content in READERS[name].valid:
        path = place(READERS[name], tmp_path)
        path.write_bytes(content)
        assert one_line(lambda path=path: READERS[name].read(path), READERS[name].sound) is None


@pytest.mark.parametrize("name, examples", [
    *((name, HURRY.get(name, FEW)) for name in READERS),
    *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in READERS)])
def test_damaged_files_end_in_one_line(name, examples, tmp_path):
    reader, path, lines = READERS[name], place(READERS[name], tmp_path), []
    before = sorted(p for p in tmp_path.rglob("*") if p != path)

    @fuzz(examples)
    @given(st.sampled_from(reader.valid), st.sampled_from(reader.valid), DAMAGE)
    def damage(whole, other, how):
        path.write_bytes(damaged(whole, other, how))
        lines.append(one_line(lambda: reader.read(path), reader.sound))

    damage()
    assert any(lines) or name == "metrics"  # whose damaged lines are left out
    assert sorted(p for p in tmp_path.rglob("*") if p != path) == before
