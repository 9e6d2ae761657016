"""A manifest finds whatever changed in a folder, and in itself."""

from __future__ import annotations

import json
import os

import pytest

from pidistill.core.errors import PidistillError
from pidistill.files.manifest import MANIFEST, MANIFEST_LIMIT, read_manifest, serialise_manifest, verify, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(100)))
    (tmp_path / "b.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def refused(folder, *only: str) -> str:
    with pytest.raises(PidistillError) as caught:
        verify(folder, only)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_is_whole(folder):
    verify(folder)
    (folder / "new").write_text("what came later does not belong to it")
    verify(folder)


def test_a_missing_a_longer_and_a_changed_file(folder):
    content = (folder / "a.bin").read_bytes()
    (folder / "a.bin").write_bytes(content + b"x")
    assert "a.bin has 101 bytes, not the 100" in refused(folder)
    (folder / "a.bin").write_bytes(content[:-1] + b"x")
    assert "a.bin is damaged" in refused(folder) and "a.bin is damaged" in refused(folder, "a.bin")
    verify(folder, ["b.json"])  # only this one was asked for
    (folder / "a.bin").unlink()
    assert "a.bin is missing" in refused(folder)


def test_a_changed_bit_of_the_manifest_is_found_wherever_it_is(folder):
    content = (folder / MANIFEST).read_bytes()
    for place in range(0, len(content), 7):
        (folder / MANIFEST).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        assert f"{MANIFEST} is damaged" in refused(folder), place


@pytest.mark.parametrize("text, words", [("", "is damaged"), ("[]", "is damaged"), ("{}", "is damaged"),
                                         ("[" * 9000, "is damaged"), (" " * (MANIFEST_LIMIT + 1), "too large")])
def test_what_is_no_manifest(folder, text, words):
    (folder / MANIFEST).write_text(text)
    assert words in refused(folder)
    (folder / MANIFEST).unlink()
    assert "no whole checkpoint" in refused(folder)


def test_a_manifest_names_no_file_elsewhere(folder):
    """Also one with a right sum, which somebody else has written."""
    outside = folder.parent / "outside"
    outside.write_text("x")
    record = {"files": {"../outside": {"bytes": 1, "sha256": "0" * 64}}}
    (folder / MANIFEST).write_text(serialise_manifest(record))
    assert "is missing" in refused(folder) and json.loads((folder / MANIFEST).read_text())["files"] == record["files"]


def test_a_record_is_read_as_it_was_written_or_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(serialise_manifest({"a": [1, 0.1, None], "b": {"c": "d"}}))
    assert read_manifest(path) == {"a": [1, 0.1, None], "b": {"c": "d"}}
    data = path.read_bytes()
    for k in range(0, len(data), 7):
        path.write_bytes(data[:k] + bytes([data[k] ^ 2]) + data[k + 1:])
        with pytest.raises(PidistillError, match=r"a\.json is damaged"):
            read_manifest(path)
    path.unlink()
    with pytest.raises(PidistillError, match=r"a\.json is missing"):
        read_manifest(path)
    os.mkfifo(path)
    with pytest.raises(PidistillError, match="no regular file"):
        read_manifest(path)
