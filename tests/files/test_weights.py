"""Folders of safetensors and JSON: whole or not at all, and one line for what is broken."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder, write_json
from pidistill.files.reading import read_json
from pidistill.files.weights import load_weights, read_tensors
from pidistill.training.log import read_metrics


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_round_trip_leaves_nothing_else(tmp_path):
    folder = tmp_path / "a" / "b"
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)}  # not contiguous, and a scalar
    write_folder(folder, {"model": tensors}, {"config": {"k": 1}})
    read = read_tensors(folder / "model.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)
    assert read_json(folder / "config.json") == {"k": 1}
    write_folder(folder, {}, {"other": {}})
    assert contents(tmp_path) == ["a", "a/b", "a/b/other.json"]  # replaced as a whole, no temporary folder left


def test_a_failing_write_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "a"
    write_folder(folder, {"model": {"x": torch.ones(2)}}, {"config": {"k": 1}})
    before = contents(tmp_path)
    with pytest.raises(TypeError):
        write_folder(folder, {"model": {"x": torch.zeros(2)}}, {"config": {"k": object()}})
    assert contents(tmp_path) == before
    assert read_tensors(folder / "model.safetensors")["x"].tolist() == [1, 1]


def test_a_failing_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    """The disk refuses the last step: the old folder must still be there, and the error one line."""
    from pathlib import Path

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
    assert read_json(folder / "config.json") == {"k": 2} and contents(tmp_path) == ["a", "a/config.json"]


def test_unwritable_places_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda p: write_folder(p, {}, {}), lambda p: write_json(p, {})):
        with pytest.raises(PidistillError, match="cannot write"):
            write(tmp_path / "file" / "below")


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_truncated_tensors_are_one_line(tmp_path, size):
    write_folder(tmp_path / "a", {"m": {"x": torch.ones(40)}}, {})
    path = tmp_path / "a" / "m.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(PidistillError, match="truncated") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text, words", [("{", "cannot read"), ("[1]", "expected a JSON object"), ("\xff", "cannot read")])
def test_bad_json_is_one_line(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(PidistillError, match=words):
        read_json(path)


def test_missing_files_are_one_line(tmp_path):
    for read in (read_json, read_tensors):
        with pytest.raises(PidistillError, match="does not exist"):
            read(tmp_path / "a")
        with pytest.raises(PidistillError, match="cannot read"):
            read(tmp_path)


def test_weights_must_fit(tmp_path):
    net, where = nn.Linear(2, 3), tmp_path / "w"
    good = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    load_weights(net, good, where)
    assert net.weight.sum() == 6
    for bad, words in (({"weight": good["weight"]}, "1 missing, first bias"),
                       (good | {"x": good["bias"]}, "1 unknown, first x"),
                       (good | {"bias": torch.zeros(4)}, r"bias has shape \(4,\), the network \(3,\)")):
        with pytest.raises(PidistillError, match=words):
            load_weights(net, bad, where)


def test_half_a_line_of_metrics_is_left_out(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]
