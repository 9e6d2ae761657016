"""Which weights of a checkpoint are taken, by its form: every value loaded is that of the intended copy."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pidistill.core.errors import PidistillError
from pidistill.files.selection import load_chosen, split_entry
from tests.own_nets import SIDE, Frozen, Normed, Plain, Tied


def state_of(seed: int, kind: type[nn.Module] = Normed) -> dict[str, torch.Tensor]:
    """The weights of such a network, every one of them drawn."""
    random_numbers = torch.Generator().manual_seed(seed)
    state = {name: value.clone() for name, value in kind().state_dict().items()}
    for value in state.values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=random_numbers))
    return state


RAW, AVERAGE, OTHER = state_of(1), state_of(2), state_of(3)
NAMES = [name for name, _ in Normed().named_parameters()]
BUFFERS = {name: value for name, value in RAW.items() if name not in NAMES}
MIXED = {name: AVERAGE[name] if name in NAMES else RAW[name] for name in RAW}  # averages have no buffers
LIST = [AVERAGE[name] for name in NAMES]


def prefix(state, text):
    return {f"{text}{name}": value for name, value in state.items()}


def undot(state):
    """As LitEma of latent diffusion names what it averages."""
    return {name.replace(".", ""): value for name, value in state.items()}


def adam(state):
    moments = {k: {"step": torch.tensor(4.0), "exp_avg": 0 * value, "exp_avg_sq": 0 * value}
               for k, value in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"params": [*range(len(state))], "lr": 1e-3}]}


def load(contents, tmp_path, kind=Normed, name="w.pt", **options):
    """Give the weights of a network that a file with these contents was loaded into, and what was chosen."""
    net, path = kind(), tmp_path / name
    save_file(contents, path) if name.endswith("safetensors") else torch.save(contents, path)
    choice = load_chosen(net, path, "it", **options)
    return net.state_dict(), choice


def same(state, expected):
    return state.keys() == expected.keys() and all(torch.equal(value, expected[name].to(value.dtype))
                                                   for name, value in state.items())


def refuse(words, contents, tmp_path, **options):
    with pytest.raises(PidistillError, match=words) as caught:
        load(contents, tmp_path, **options)
    assert "\n" not in str(caught.value) and "w.pt" in str(caught.value)
    return str(caught.value)


TRAINED = {name: RAW[name] for name in NAMES}
AVERAGED = {  # form of the file -> its contents, the label that is chosen, and the weights that are loaded
    "the issue's": ({"model": RAW, "model_ema": AVERAGE}, "model_ema", AVERAGE),
    "k-diffusion": ({"model": RAW, "model_ema": AVERAGE, "opt": adam(TRAINED), "sched": {"last_epoch": 3}, "epoch": 1,
                     "scaler": {}}, "model_ema", AVERAGE),
    "DiT": ({"model": RAW, "ema": AVERAGE, "opt": adam(TRAINED), "args": argparse.Namespace(lr=1e-4, image_size=256)}, "ema",
            AVERAGE),
    "EDM-like": ({"net": RAW, "ema": AVERAGE, "optimizer_state": adam(TRAINED)}, "ema", AVERAGE),
    "timm": ({"epoch": 3, "arch": "x", "state_dict": RAW, "optimizer": adam(TRAINED), "state_dict_ema": AVERAGE,
              "metric": 0.5}, "state_dict_ema", AVERAGE),
    "a nested average": ({"state": {"net": {"model": prefix(RAW, "module."), "EMA": prefix(AVERAGE, "_orig_mod.module.")}}},
                         "state.net.EMA._orig_mod.module", AVERAGE),
    "lucidrains": ({"step": 7, "opt": adam(TRAINED), "scaler": None, "version": "2.0",
                    "model": {**prefix(RAW, "model."), "betas": torch.ones(10), "alphas_cumprod": torch.ones(10)},
                    "ema": {"initted": torch.tensor([True]), "step": torch.tensor([7]), **prefix(RAW, "online_model.model."),
                            **prefix(AVERAGE, "ema_model.model."), "ema_model.betas": torch.ones(10)}},
                   "ema.ema_model.model", AVERAGE),
    "Lightning, one dictionary": (
        {"state_dict": {**prefix(RAW, "model."), **prefix(AVERAGE, "ema_model."), "first_stage_model.x": torch.ones(3),
                        "loss.logvar": torch.ones(1)}, "optimizer_states": [adam(TRAINED)], "lr_schedulers": []},
        "state_dict.ema_model", AVERAGE),
    "latent diffusion": (
        {"state_dict": {"betas": torch.ones(5), **prefix(RAW, "model.diffusion_model."),
                        "first_stage_model.x": torch.ones(1),
                        "model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(4),
                        **prefix(undot({name: AVERAGE[name] for name in NAMES}), "model_ema.diffusion_model")}},
        "state_dict.model_ema.diffusion_model", MIXED),
    "LitEma beside its network": (
        {**prefix(RAW, "model."), "model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(4),
         **prefix(undot({name: AVERAGE[name] for name in NAMES}), "model_ema.")}, "model_ema", MIXED),
    "Lightning, a callback": ({"state_dict": prefix(RAW, "net."), "callbacks": {"EMA{'decay': 0.99}": {
        "ema_state_dict": prefix(AVERAGE, "net.")}, "ModelCheckpoint": {"best": 0.1}}, "loops": {"fit": [1, 2]}},
        "callbacks.EMA{'decay': 0.99}.ema_state_dict.net", AVERAGE),
    "score_sde": ({"optimizer": adam(TRAINED), "model": prefix(RAW, "module."), "step": 8,
                   "ema": {"decay": 0.999, "num_updates": 8, "shadow_params": LIST}}, "ema.shadow_params", MIXED),
    "score_sde with sigmas": ({"model": {"module.sigmas": torch.ones(10), **prefix(RAW, "module.")},
                               "ema": {"num_updates": 8, "shadow_params": LIST}}, "ema.shadow_params", MIXED),
    "score_sde, another order": (
        {"model": dict(reversed(prefix(RAW, "module.").items())), "ema": {"shadow_params": LIST[::-1]}}, "ema.shadow_params",
        MIXED),
    "torch_ema": ({"net": RAW, "averages": {"decay": 0.9, "shadow_params": LIST, "collected_params": [0 * x for x in LIST]}},
                  "averages.shadow_params", MIXED),
    "average of parameters": ({"model": RAW, "ema": {name: AVERAGE[name] for name in NAMES}}, "ema", MIXED),
    "swa": ({"model": RAW, "swa_model": {"n_averaged": torch.tensor(3), **prefix(AVERAGE, "module.")}}, "swa_model.module",
            AVERAGE),
    "swa, counted outside": ({"n_averaged": 3, "model": RAW, "swa_state_dict": prefix(AVERAGE, "module.")},
                             "swa_state_dict.module", AVERAGE),
    "an AveragedModel under no name": ({"a": RAW, "b": {"n_averaged": torch.tensor(3), **prefix(AVERAGE, "module.")}},
                                       "b.module", AVERAGE),
    "one flat dictionary": ({**prefix(RAW, "model."), **prefix(AVERAGE, "ema.")}, "ema", AVERAGE),
    "flat, other marks than dots": ({**prefix(RAW, "model/"), **prefix(AVERAGE, "model_ema_")}, "model_ema", AVERAGE),
    "flat, raw without a prefix": ({**RAW, **prefix(AVERAGE, "ema.")}, "ema", AVERAGE),
    "shadow and backup": ({"model": RAW, "shadow": AVERAGE, "backup": OTHER}, "shadow", AVERAGE),
    "StyleGAN": ({"g": RAW, "d": {"x": torch.ones(3)}, "g_ema": AVERAGE}, "g_ema", AVERAGE),
    "the same average twice": ({"model": RAW, "ema": AVERAGE, "model_ema": AVERAGE}, "ema", AVERAGE),
    "the same average in two types": ({"model": RAW, "ema": AVERAGE, "ema_double": {
        name: value.double() for name, value in AVERAGE.items()}}, "ema", AVERAGE),
    "without words": ({"modelEMA": AVERAGE, "modelRaw": RAW}, "modelEMA", AVERAGE),
}


@pytest.mark.parametrize("form", AVERAGED)
def test_the_average_is_taken_and_said(tmp_path, capsys, form):
    contents, label, expected = AVERAGED[form]
    state, choice = load(contents, tmp_path)
    assert same(state, expected) and choice.entry == label
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"w.pt: weights are taken from {label}, an average")


@pytest.mark.parametrize("form", AVERAGED)
def test_the_order_of_dictionaries_changes_nothing(tmp_path, form):
    """But for the order of parameters in what a list is the average of."""
    def shuffle(x):
        if not isinstance(x, dict):
            return x
        items = [*x.items()]
        if not any(isinstance(value, torch.Tensor) for value in x.values()) or "score_sde" not in form:
            random.Random(5).shuffle(items)
        return {key: shuffle(value) for key, value in items}

    if form != "torch_ema":
        state, choice = load(shuffle(AVERAGED[form][0]), tmp_path)
        assert same(state, AVERAGED[form][2]) and choice.entry == AVERAGED[form][1]


SINGLE = {
    "flat": (RAW, ""), "under a key": ({"model_state_dict": RAW, "epoch": 3}, "model_state_dict"),
    "deep": ({"a": {"b": [{"c": RAW}]}, "lr": 0.1}, "a.b.0.c"),
    "by modules": ({"first": {"weight": RAW["first.weight"], "bias": RAW["first.bias"]},
                    **{name: value for name, value in RAW.items() if not name.startswith("first")}}, ""),
    "beside moments": ({"net": RAW, "exp_avg": AVERAGE, "exp_avg_sq": OTHER}, "net"),
    "beside moments in it": ({"params": RAW, "state": {"exp_avg": AVERAGE}, "momentum": OTHER}, "params"),
    "beside moments, flat": ({**prefix(RAW, "model."), **prefix(OTHER, "optimizer.exp_avg.")}, "model"),
    "beside unknown moments": ({"model": RAW, "m": AVERAGE, "v": OTHER}, "model"),
    "beside what is averaged, empty": ({"model": RAW, "ema": {}, "ema_decay": 0.9}, "model"),
    "Lightning's average": ({"state_dict": prefix(RAW, "net."), "current_model_state": prefix(OTHER, "net.")},
                            "state_dict.net"),
}


@pytest.mark.parametrize("form", SINGLE)
def test_weights_alone_or_beside_what_is_no_weight(tmp_path, capsys, form):
    contents, label = SINGLE[form]
    state, choice = load(contents, tmp_path)
    assert same(state, RAW) and choice.entry == label
    said = capsys.readouterr().err
    assert (said == "") if form == "flat" else said.startswith(f"w.pt: weights are taken from {label or '.'}")


WRAPPERS = ["module.", "_orig_mod.", "net.", "_fsdp_wrapped_module."]


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("wrappers", [*itertools.permutations(WRAPPERS, 2), WRAPPERS, WRAPPERS[::-1] * 2], ids="".join)
def test_prefixes_in_any_order_and_depth(tmp_path, capsys, wrappers, ending):
    text = "".join(wrappers)
    state, choice = load({**prefix(RAW, text)}, tmp_path, name=f"w.{ending}")
    assert same(state, RAW) and choice.entry == text[:-1]
    assert capsys.readouterr().err == f"w.{ending}: weights are taken from {text[:-1]}\n"


def test_wrappers_inside_names_and_one_that_the_network_has(tmp_path):
    inside = {name.replace("first.", "first._fsdp_wrapped_module.").replace("norm.", "norm._orig_mod.module."): value
              for name, value in RAW.items()}
    assert same(load(prefix(inside, "module."), tmp_path)[0], RAW)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    state = Wrapped().state_dict()
    assert same(load(prefix(state, "module."), tmp_path, kind=Wrapped)[0], state)


def test_both_copies_in_one_file_of_safetensors(tmp_path):
    state, choice = load({**prefix(RAW, "model."), **prefix(AVERAGE, "ema.")}, tmp_path, name="w.safetensors")
    assert same(state, AVERAGE) and choice.entry == "ema"


def test_averages_of_torch_itself(tmp_path):
    net = Normed()
    net.load_state_dict(RAW)
    average = AveragedModel(net)
    average.module.load_state_dict(AVERAGE)
    state, _ = load({"net": net.state_dict(), "average": average.state_dict()}, tmp_path)
    assert same(state, AVERAGE)


def test_half_precision_and_tied_weights(tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in AVERAGE.items()}
    state, _ = load({"model": RAW, "ema": half}, tmp_path)
    assert same(state, half) and state["first.weight"].dtype == torch.float32
    tied = Tied()
    raw, average = dict(tied.state_dict()), [torch.rand_like(x) for x in tied.parameters()]
    for names in (raw, {name: value for name, value in raw.items() if name != "last.weight"}):
        state, _ = load({"model": names, "ema": {"shadow_params": average}}, tmp_path, kind=Tied)
        assert same(state, dict(zip([name for name, _ in tied.named_parameters()], average)) | {"last.weight": average[2]})


def test_a_frozen_parameter_is_of_what_was_averaged(tmp_path):
    raw, average = state_of(1, Frozen), state_of(2, Frozen)
    names = [name for name, parameter in Frozen().named_parameters() if parameter.requires_grad]
    expected = raw | {name: average[name] for name in names}
    for ema in ({"shadow_params": [average[name] for name in names]}, {name: average[name] for name in names}):
        assert same(load({"model": raw, "ema": ema}, tmp_path, kind=Frozen)[0], expected)


def test_a_list_alone_is_taken_in_the_network_s_order(tmp_path, capsys):
    average = state_of(2, Plain)
    state, _ = load({"shadow_params": [*average.values()], "decay": 0.9}, tmp_path, kind=Plain)
    assert same(state, average)
    assert "shadow_params, an average in the order of the network's parameters, which shapes alone confirm" \
        in capsys.readouterr().err
    for values in ([*average.values()][:-1], [*average.values()][::-1], [*average.values(), torch.ones(1)]):
        refuse("it is a list of . tensors, which are not, in order and shape, the 6 parameters", {"shadow_params": values},
               tmp_path, kind=Plain)


def test_buffers_that_no_entry_has(tmp_path):
    """Constants are the network's own; statistics are nobody's."""
    words = r"weights 2 missing, first norm\.running_mean, norm\.running_var"
    refuse(words, {"ema": {"shadow_params": LIST}}, tmp_path)
    refuse(words, {name: RAW[name] for name in NAMES}, tmp_path)
    state, _ = load({"ema": {"shadow_params": LIST}}, tmp_path, constants=("running_mean", "running_var"))
    assert same(state, Normed().state_dict() | {name: AVERAGE[name] for name in NAMES})
    other = RAW | {"norm.running_mean": torch.ones(SIDE)}
    refuse("it lacks norm.running_mean, which model, net have differently", {
        "model": RAW, "net": other, "ema": {"shadow_params": LIST}}, tmp_path, entry="ema")


EQUAL = {
    "rates": ({"model": RAW, "ema_0.9999": AVERAGE, "ema_0.999": OTHER}, ["ema_0.999", "ema_0.9999"]),
    "a list of averages": ({"model": RAW, "emas": [AVERAGE, OTHER]}, ["emas.0", "emas.1"]),
    "lists of rates": ({"model": RAW, "ema_params": [LIST, LIST[:1] + [OTHER[name] for name in NAMES[1:]]]},
                       ["ema_params.0", "ema_params.1"]),
    "two networks": ({"student": RAW, "other": OTHER}, ["other", "student"]),
    "nobody knows which": ({"model": RAW, "target_model": OTHER}, ["model", "target_model"]),
}


@pytest.mark.parametrize("form", EQUAL)
def test_entries_as_good_as_each_other_are_refused_and_named(tmp_path, form):
    contents, labels = EQUAL[form]
    refuse(f"2 different entries that fit it equally: {re.escape(', '.join(labels))}; name one with "
           ",entry=NAME", contents, tmp_path)
    for label in labels:
        state, choice = load(contents, tmp_path, entry=label)
        assert choice.entry == label
    assert same(state, contents[labels[1]]) if labels[1] in contents else True


def test_an_entry_is_named_by_the_user(tmp_path):
    contents = AVERAGED["lucidrains"][0]
    for entry, label, expected in (("model", "model.model", RAW), ("ema", "ema.ema_model.model", AVERAGE),
                                   ("ema.online_model", "ema.online_model.model", RAW)):
        state, choice = load(contents, tmp_path, entry=entry)
        assert same(state, expected) and choice.entry == label
    state, choice = load({**RAW, **prefix(AVERAGE, "ema.")}, tmp_path, entry=".")
    assert same(state, RAW) and choice.entry == ""
    refuse("has no entry 'emma' that may be weights; it has ema.ema_model.model, ema.online_model.model, model.model",
           contents, tmp_path, entry="emma")
    refuse("no entry 'exp_avg'", {"model": RAW, "exp_avg": AVERAGE}, tmp_path, entry="exp_avg")


def test_names_of_files_with_commas(tmp_path):
    (tmp_path / "a,entry=b.pt").write_bytes(b"")
    assert split_entry(f"{tmp_path}/a,entry=b.pt") == (tmp_path / "a,entry=b.pt", None)
    assert split_entry("a,b.pt,entry=ema_0.9999") == (split_entry("a,b.pt")[0], "ema_0.9999")
    with pytest.raises(PidistillError, match="FILE,entry=NAME"):
        split_entry("a.pt,entry=")


@pytest.mark.parametrize("average, words", [
    ({"ema": AVERAGE | {"first.bias": torch.ones(3)}}, r"first.bias has shape \(3,\), the network \(16,\)"),
    ({"ema": {name: value for name, value in AVERAGE.items() if name != "last.bias"}}, "1 missing, first last.bias"),
    ({"ema": {f"x{k}": value for k, value in enumerate(AVERAGE.values())}}, "missing, first .*; 11 unknown, first x0"),
    ({"ema": {"shadow_params": LIST[:-1]}}, "a list of 7 tensors"),
    ({"ema": AVERAGE | {"more": torch.ones(3)}}, "1 unknown, first more")])
@pytest.mark.parametrize("flat", [False, True])
def test_an_average_that_does_not_fit_is_said(tmp_path, capsys, average, words, flat):
    contents = {"model": RAW, **average}
    if flat:
        contents = {f"{key}.{name}": value for key, state in contents.items() for name, value in state.items()}
    state, choice = load(contents, tmp_path)
    assert same(state, RAW) and choice.entry == "model"
    assert re.search(rf"the average ema\S* does not fit, so that these weights are no average: .*{words}",
                     capsys.readouterr().err)


def test_an_average_that_was_never_updated_is_said(tmp_path, capsys):
    load({"model": RAW, "swa": {"n_averaged": torch.tensor(0), **prefix(AVERAGE, "module.")}}, tmp_path)
    load({"model": RAW, "ema": {"initted": torch.tensor([False]), **prefix(AVERAGE, "ema_model.")}}, tmp_path)
    said = capsys.readouterr().err
    assert "never updated (n_averaged is 0)" in said and "never updated (initted is 0)" in said


def test_three_names_of_the_file_stand_beside_three_that_are_missing(tmp_path):
    theirs = {f"input_blocks.{k}.weight": value for k, value in enumerate(RAW.values())}
    said = refuse("weights 11 missing, first first.bias, first.weight, last.bias; 11 unknown, first input_blocks.0.weight, "
                  "input_blocks.1.weight, input_blocks.10.weight; looked at ema, model",
                  {"model": theirs, "ema": theirs, "optimizer": adam(RAW)}, tmp_path)
    assert "optimizer" not in said
    close = {name.replace("last", "out"): value for name, value in RAW.items()}
    refuse("weights 2 missing, first last.bias, last.weight; 2 unknown, first out.bias, out.weight; looked at b, a",
           {"a": theirs, "b": close}, tmp_path)


def test_labels_are_printable(tmp_path, capsys):
    _, choice = load({"a\x1b[2J\nb": RAW}, tmp_path)
    assert choice.entry == "a?[2J?b" and capsys.readouterr().err == "w.pt: weights are taken from a?[2J?b\n"
    refuse("looked at a.*2J.b", {"a\x1b[2J\nb": {"x": RAW["first.bias"]}}, tmp_path)


def test_optimisers_alone_are_no_weights(tmp_path):
    refuse("no state dictionary of weights", {"optimizer": adam(RAW)}, tmp_path)
    refuse("no state dictionary of weights", {"exp_avg": RAW, "grads": AVERAGE}, tmp_path)


class Foreign:
    def __reduce__(self):
        return os.system, ("touch marker",)


def around(inner, times, make):
    for _ in range(times):
        inner = make(inner)
    return inner


def within_itself():
    own: dict = {"model": RAW}
    own["self"] = own
    return own


HOSTILE = {
    "itself": within_itself, "deep": lambda: around(RAW, 200, lambda inner: {"a": inner}),
    "billions": lambda: {"ema": around([torch.ones(1)], 40, lambda inner: [inner, inner])},
    "long": lambda: {"a" * 10**6: {"b": RAW}}, "code": lambda: {"model": RAW, "x": Foreign()}}


@pytest.mark.parametrize("kind, words", [
    ("itself", "more than 200,000 values"), ("deep", "deeper in each other than 32"), ("billions", "more than 200,000"),
    ("long", "longer names|fit the network"),
    ("code", "more than a state dictionary of tensors .a posix.system, whose code is not run")])
def test_hostile_files_are_one_line_and_run_nothing(tmp_path, monkeypatch, kind, words):
    monkeypatch.chdir(tmp_path)
    refuse(words, HOSTILE[kind](), tmp_path)
    assert not (tmp_path / "marker").exists()
