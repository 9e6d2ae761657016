"""Everything in a checkpoint has a name, and a label says what kind of copy it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.entries import (
    AVERAGE,
    OTHER,
    WEIGHTS,
    find_average,
    find_entries,
    find_prefixes,
    list_states,
    name_values,
    rank_label,
    split_words,
)

X = torch.ones(2)
LABELS = {
    AVERAGE: "ema EMA model_ema ema_model modelEMA netema emanet ema_0.9999 state_dict_ema swa_model ema.model polyak "
             "ema.shadow_params averaged_model.module model_avg callbacks.EMACallback.weights",
    WEIGHTS: " model state_dict model_state_dict net _orig_mod.module unet model.diffusion_model params 0 target_model "
             "_fsdp_wrapped_module",
    OTHER: "ema.online_model raw non_ema model_no_ema current_model_state best student cinema schema remainder emails",
    None: "optimizer opt optimizer_states.0.ema exp_avg state.exp_avg_sq max_exp_avg_sq ema.collected_params backup scaler "
          "lr_schedulers grads momentum_buffer expAvg adam.mu nu square_avg"}


@pytest.mark.parametrize("label, rank", [(label, rank) for rank, labels in LABELS.items()
                                         for label in labels.split(" ")])
def test_labels_say_what_an_entry_is(label, rank):
    assert rank_label(label) == rank


def test_words_of_a_name():
    assert split_words("netEMA_0") == ["net", "ema"] and split_words("EMAModel2") == ["ema", "model"]
    assert find_average("a.model_ema.first.weight") == "a.model_ema" and find_average("a.ema") == ""


def test_values_are_named_by_their_keys():
    contents = {"a": {"b.c": X, "n": 3}, "l": [{"x": X}, 4], "shadow": (X, X), "optimizer": {"x": X}, 7: X, "x\ny": X,
                "b": {"d": {}}}
    leaves = name_values(contents, Path("w"))
    assert {name: leaf.container for name, leaf in leaves.items()} == {
        "a.b.c": "a", "a.n": "a", "l.0.x": "l.0", "shadow": "", "7": "", "x\ny": ""}
    assert [name for name, leaf in leaves.items() if not leaf.sound] == ["7", "x\ny"]
    assert not name_values({"a": {"b": X}, "a.b": X}, Path("w"))["a.b"].sound
    assert name_values(X, Path("w")) == name_values(3, Path("w")) == {}
    assert list_states(leaves).keys() == {"a", "l.0", "shadow", ""}


def test_prefixes_are_what_stands_before_a_network_s_names():
    names = ["enc.0.weight", "out.bias"]
    leaves = name_values({"m": {"module.enc._orig_mod.0.weight": X, "module.out.bias": X}, "model_ema": {
        "netenc0weight": X, "netoutbias": X}}, Path("w"))
    assert find_prefixes(leaves, names) == {
        "m.module.": {"enc.0.weight": "m.module.enc._orig_mod.0.weight", "out.bias": "m.module.out.bias"},
        "model_ema.net": {"enc.0.weight": "model_ema.netenc0weight", "out.bias": "model_ema.netoutbias"}}
    two = name_values({"enc._orig_mod.0.weight": X, "enc.0.weight": X, "out.bias": X}, Path("w"))
    assert find_prefixes(two, names) == {}  # one name twice: which is meant?


@pytest.mark.parametrize("contents", [{f"k{k}": 0 for k in range(10**6)}, {"a": {f"k{k}": X for k in range(3 * 10**5)}}])
def test_files_of_too_many_values_end_soon(contents):
    began = time.process_time()
    with pytest.raises(PidistillError, match="more than 200,000 values"):
        name_values(contents, Path("w"))
    assert time.process_time() - began < 1


def test_many_values_and_many_entries_end_soon():
    names = [f"block{k}.weight" for k in range(50)]
    leaves = name_values({f"{k}.{'x.' * 100}{name}": X for k in range(200) for name in names}, Path("w"))
    began = time.process_time()
    with pytest.raises(PidistillError, match="more than 100 entries"):
        find_entries(leaves, names, Path("w"))
    assert time.process_time() - began < 3
