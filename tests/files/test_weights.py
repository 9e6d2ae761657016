"""Weights fit their network exactly, or are refused in one line."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder
from pidistill.files.weights import load_weights, read_tensors
from pidistill.training.log import read_metrics


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_truncated_tensors_are_one_line(tmp_path, size):
    write_folder(tmp_path / "a", {"m": {"x": torch.ones(40)}}, {})
    path = tmp_path / "a" / "m.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(PidistillError, match="truncated") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


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
