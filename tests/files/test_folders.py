"""Files and folders are whole or not there at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file

from pidistill.core.errors import CannotWrite, PidistillError
from pidistill.files import folders
from pidistill.files.folders import (
    check_free,
    find_cache_folder,
    quote_path,
    save_tensors,
    write_bytes,
    write_folder,
    write_json,
    write_tensors,
    write_text,
)
from pidistill.files.reading import read_json
from pidistill.files.safetensors_header import read_header
from pidistill.files.weights import read_tensors
from tests.own_nets import Normed, Plain, Sliced, Tied, TiedTwice, Transposed


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


# Shared memory, and what no file can hold ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Plain, Tied, TiedTwice, Transposed, Sliced, Normed])
def test_what_has_several_names_is_written_once(tmp_path, kind):
    """And read under all of them, by the library too; of views each has its own elements."""
    net, path = kind(), tmp_path / "a.safetensors"
    state = net.state_dict()
    write_tensors(path, state)
    read, header = read_tensors(path), read_header(path)
    assert read.keys() == state.keys() and all(torch.equal(read[name], value) for name, value in state.items())
    tied = {Tied: {"last.weight": "second.weight"},
            TiedTwice: {"last.weight": "second.weight", "again.weight": "second.weight", "again.bias": "second.bias"}}
    assert header.pop("__metadata__", {}) == tied.get(kind, {}) and header.keys() == state.keys() - tied.get(kind, {}).keys()
    if kind in (Tied, TiedTwice):
        other = kind()
        load_model(other, path)
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_parts_and_views_of_one_memory_are_written_as_they_are(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"a": whole, "b": whole.T, "c": whole[:, ::2], "d": whole.view(24), "e": whole[1:3], "f": whole,
               "g": torch.ones(1).expand(5), "h": whole[:0]}
    write_tensors(tmp_path / "a", tensors)
    read = read_tensors(tmp_path / "a")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], value) for name, value in tensors.items())
    assert read_header(tmp_path / "a")["__metadata__"] == {"f": "a"}


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"b": "nowhere"}, {"a": "b"}, {"x": "a", "format": "a"}])
def test_metadata_of_others_change_nothing_else(tmp_path, metadata):
    save_file({"a": torch.ones(2), "pt": torch.zeros(2)}, tmp_path / "a", metadata=metadata)
    assert read_tensors(tmp_path / "a").keys() == {"a", "pt"} | ({"x"} & metadata.keys())


UNWRITABLE = {"sparse": torch.eye(3).to_sparse(), "complex128": torch.ones(2, dtype=torch.complex128)}


@pytest.mark.parametrize("kind", ["sparse", "complex128", "number"])
def test_tensors_that_no_file_holds_are_no_fault_of_the_disk(tmp_path, kind):
    """One line, which is no CannotWrite: waiting would not help."""
    tensors = {"a": torch.ones(2), 3 if kind == "number" else "b": UNWRITABLE.get(kind, torch.zeros(2))}
    for write in (lambda: write_tensors(tmp_path / "a", tensors), lambda: write_folder(tmp_path / "b", {"a": tensors}, {})):
        with pytest.raises(PidistillError, match="cannot hold these tensors") as caught:
            write()
        assert not isinstance(caught.value, CannotWrite) and "\n" not in str(caught.value)
    assert list_tree(tmp_path) == []


@pytest.mark.parametrize("words, kind", [
    ("Error while serializing: I/O error: No space left on device (os error 28)", OSError),
    ("Error while serializing: IoError(Os { code: 28 })", OSError),
    ("Error while serializing: InvalidTensorView", PidistillError)])
def test_the_library_s_errors_of_the_disk_are_told_from_others(tmp_path, monkeypatch, words, kind):
    def fail(*_, **__):
        raise SafetensorError(words)

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(kind, match=words.split(":")[0]):
        save_tensors(tmp_path / "a", {"a": torch.ones(2)})


@pytest.mark.parametrize("name, quoted", [
    ("runs/a", "runs/a"), ("my run", "'my run'"), ("it's", "'it'\"'\"'s'"), ("-a", "./-a"),
    ("-a b", "'./-a b'"), ("$HOME", "'$HOME'")])
def test_a_path_is_quoted_as_a_command_takes_it(name, quoted):
    assert quote_path(name) == quote_path(Path(name)) == quoted
