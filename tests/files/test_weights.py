"""Weights fit their network exactly, or are refused in one line."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder
from pidistill.files.weights import check_saveable, load_weights, read_tensors
from pidistill.training.log import read_metrics
from tests.own_nets import KINDS, Plain, Sparse, Tied, TiedTwice, Transposed


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
    for bad, words in (({"weight": good["weight"]}, "1 missing, first bias; the file has weight"),
                       (good | {"x": good["bias"]}, r"1 unknown, first x \(the network has bias, weight\)"),
                       ({"weight": good["weight"], "b": good["bias"]}, "1 missing, first bias; 1 unknown, first b"),
                       ({}, "2 missing, first bias, weight; the file has none"),
                       (good | {"bias": torch.zeros(4)}, r"bias has shape \(4,\), the network \(3,\)")):
        with pytest.raises(PidistillError, match=words):
            load_weights(net, bad, where)


def test_three_names_of_each_side_are_shown(tmp_path):
    bad = {name.replace("first", "in").replace("second", "mid").replace("last", "out"): value
           for name, value in Plain().state_dict().items()}
    with pytest.raises(PidistillError, match=r"weights 6 missing, first first\.bias, first\.weight, last\.bias; "
                                             r"6 unknown, first in\.bias, in\.weight, mid\.bias"):
        load_weights(Plain(), bad, tmp_path)


@pytest.mark.parametrize("kind", [Tied, TiedTwice])
def test_one_name_of_a_tied_weight_is_enough(tmp_path, kind):
    """Whichever it is; several must agree."""
    state = kind().state_dict()
    shared = [name for name in state if name.endswith("weight") and name != "first.weight"]
    for kept in shared:
        net = kind()
        load_weights(net, {name: value for name, value in state.items() if name not in shared or name == kept}, tmp_path)
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with pytest.raises(PidistillError, match=r"second\.weight and \w+\.weight share their memory there, and do not agree"):
        load_weights(kind(), state | {shared[-1]: state[shared[-1]] + 1}, tmp_path)


def test_views_of_one_memory_must_agree(tmp_path):
    state = {name: value.clone() for name, value in Transposed().state_dict().items()}
    net = Transposed()
    load_weights(net, state, tmp_path)
    assert torch.equal(net.last.weight, state["last.weight"]) and torch.equal(net.second.weight, net.last.weight.T)
    state["last.weight"][0, 1] += 1
    with pytest.raises(PidistillError, match="share their memory there, and do not agree"):
        load_weights(Transposed(), state, tmp_path)


class Extra(Plain):
    """State that is no tensor."""

    def get_extra_state(self):
        return {"k": 1}


class Complex(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex128))


def test_networks_that_cannot_be_saved_are_refused():
    for make in KINDS.values():
        check_saveable(make(), "it")
    for make, words in ((Sparse, "its graph is sparse_coo"), (Extra, "its _extra_state is dict"),
                        (Complex, "its phase is complex128")):
        with pytest.raises(PidistillError, match=f"it cannot be saved: {words}, which no file of weights holds"):
            check_saveable(make(), "it")


def test_half_a_line_of_metrics_is_left_out(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]
