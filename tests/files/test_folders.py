"""Files and folders are whole or not there at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from pidistill.core.errors import CannotWrite, PidistillError
from pidistill.files import folders
from pidistill.files.folders import (
    check_free,
    find_cache_folder,
    write_bytes,
    write_folder,
    write_json,
    write_tensors,
    write_text,
)
from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors


def list_tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_round_trip_leaves_nothing_else(tmp_path):
    folder = tmp_path / "a" / "b"
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)}  # not contiguous, and a scalar
    write_folder(folder, {"model": tensors}, {"config": {"k": 1}})
    read = read_tensors(folder / "model.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)
    assert read_json(folder / "config.json") == {"k": 1}
    write_folder(folder, {}, {"other": {}})
    assert list_tree(tmp_path) == ["a", "a/b", "a/b/other.json"]  # replaced as a whole, no temporary folder left


def test_a_failing_write_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "a"
    write_folder(folder, {"model": {"x": torch.ones(2)}}, {"config": {"k": 1}})
    before = list_tree(tmp_path)
    with pytest.raises(TypeError):
        write_folder(folder, {"model": {"x": torch.zeros(2)}}, {"config": {"k": object()}})
    assert list_tree(tmp_path) == before
    assert read_tensors(folder / "model.safetensors")["x"].tolist() == [1, 1]


def test_a_failing_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    """The disk refuses the last step: the old folder must still be there, and the error one line."""
    folder = tmp_path / "a"
    write_folder(folder, {}, {"config": {"k": 1}})
    rename = Path.rename

    def refuse(self, target):
        if self.name.endswith(str(os.getpid())):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PidistillError, match="No space left"):
        write_folder(folder, {}, {"config": {"k": 2}})
    assert read_json(folder / "config.json") == {"k": 1}


def test_what_a_crash_left_behind_does_not_block_the_next_write(tmp_path):
    folder = tmp_path / "a"
    write_folder(folder, {}, {"config": {"k": 1}})
    (tmp_path / ".a.old").mkdir()
    (tmp_path / ".a.old" / "config.json").write_text("{}")
    write_folder(folder, {}, {"config": {"k": 2}})
    assert read_json(folder / "config.json") == {"k": 2} and list_tree(tmp_path) == ["a", "a/config.json"]


def test_unwritable_places_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda p: write_folder(p, {}, {}), lambda p: write_json(p, {})):
        with pytest.raises(PidistillError, match="cannot write"):
            write(tmp_path / "file" / "below")


def test_finish_sees_the_whole_folder_before_it_has_its_name(tmp_path):
    def finish(temporary: Path) -> None:
        assert list_tree(temporary) == ["config.json", "model.safetensors"] and not (tmp_path / "a").exists()
        (temporary / "more").write_text("more")

    write_folder(tmp_path / "a", {"model": {"x": torch.ones(2)}}, {"config": {}}, finish)
    assert list_tree(tmp_path) == ["a", "a/config.json", "a/model.safetensors", "a/more"]


def test_files_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "a"
    write_text(path, "bytes \udcff")
    assert path.read_bytes() == b"bytes \\udcff"
    write_text(path, "Grüße")
    assert path.read_bytes() == "Grüße".encode() and list_tree(tmp_path) == ["new", "new/a"]
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n "b": 1,\n "a": [\n  2\n ]\n}\n'
    write_tensors(path, {"x": torch.arange(6.0).reshape(2, 3).T})
    assert read_tensors(path)["x"].tolist() == [[0, 3], [1, 4], [2, 5]] and list_tree(tmp_path) == ["new", "new/a"]


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fill(name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "mark_stage", fill)
    with pytest.raises(CannotWrite, match=r"cannot write .*a: No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list_tree(tmp_path) == ["a"]


def test_what_is_there_is_not_overwritten_without_force(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "none", force=False)
    check_free(tmp_path / "empty", force=False)
    for path in (tmp_path / "file", tmp_path):
        check_free(path, force=True)
        with pytest.raises(PidistillError, match="--force"):
            check_free(path, force=False)


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for value, expected in ((None, "/home/someone/.cache/pidistill"), ("", "/home/someone/.cache/pidistill"),
                            ("~/cache", "/home/someone/cache"), ("/scratch", "/scratch")):
        monkeypatch.delenv("PIDISTILL_CACHE", raising=False)
        if value is not None:
            monkeypatch.setenv("PIDISTILL_CACHE", value)
        assert find_cache_folder() == Path(expected)
