"""Networks are built from what a file or a user says of them; a file never makes a user's code run."""

from __future__ import annotations

import copy
import functools
import sys

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.nets.base import build_net, copy_own, describe_net, extend_net, is_own, rebuild_net, unwrap
from tests.helpers import CLASSES, MLP, NET, shake
from tests.own_nets import KINDS, Plain, Tied, make_shaped, make_wide

SHAPE, HERE = (1, 4, 4), "python:tests.own_nets:"
EVIL = {"name": "python:evil_network:run"}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module in the current folder that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_network.py").write_text("open('imported', 'w')\nfrom torch.nn import Identity as run\n")
    yield tmp_path / "imported"
    sys.modules.pop("evil_network", None)


def test_a_user_s_own_network_is_built_by_its_name():
    assert type(build_net({"name": HERE + "Tied"}, SHAPE, 0, own=True)) is Tied
    assert build_net({"name": HERE + "make_wide", "width": 7}, SHAPE, 0, own=True).second.weight.shape == (7, 7)
    assert build_net({"name": HERE + "make_shaped", "scale": 2.0}, SHAPE, 5, own=True).told == (SHAPE, 5, 2.0)


@pytest.mark.parametrize("spec", [EVIL, EVIL | {"width": 3}, {"name": "python:os:getcwd"}, {"name": "object:Mine"}])
def test_a_file_s_word_is_not_enough(evil, spec):
    for build in (lambda: build_net(spec, SHAPE, 0), lambda: rebuild_net(spec, SHAPE, 0, where="a/b", how="--net {}")):
        with pytest.raises(PidistillError, match="code, and no file decides what runs; if you trust it, name it: ") as it:
            build()
        assert "\n" not in str(it.value) and not evil.exists()
    assert str(it.value).startswith("a/b has a network") and str(it.value).endswith(
        f"--net {spec['name'] if spec['name'].startswith('python:') else 'python:MODULE:FACTORY'}")
    assert is_own(spec)


@pytest.mark.parametrize("spec", [{"name": "python:"}, {"name": "python:a"}, {"name": "python:no_such_module:f"},
                                  {"name": HERE + "Nothing"}, {"name": HERE + "make_nothing"}, {"name": HERE + "fail"},
                                  {"name": HERE + "make_wide", "wide": 3}, {"name": HERE + "Plain", "num_classes": 3},
                                  {"name": "object:Plain"}, {"name": HERE + "SIDE"}])
def test_what_makes_no_network_is_one_line(spec):
    with pytest.raises(PidistillError) as caught:
        build_net(spec, SHAPE, 0, own=True)
    assert "\n" not in str(caught.value)


def test_what_a_factory_raises_is_told_by_its_words():
    with pytest.raises(PidistillError, match=r"python:tests\.own_nets:fail makes no network: ValueError: no weights today"):
        build_net({"name": HERE + "fail"}, SHAPE, 0, own=True)
    with pytest.raises(PidistillError, match=r"must make a torch.nn.Module, it made a int"):
        build_net({"name": HERE + "make_nothing"}, SHAPE, 0, own=True)


GIVEN = [make_wide, HERE + "make_wide", {"name": HERE + "make_wide"}, lambda width: Plain(width), functools.partial(Plain)]


@pytest.mark.parametrize("net", GIVEN, ids=["function", "name", "mapping", "lambda", "partial"])
def test_a_factory_gets_the_options_of_the_file(evil, net):
    """Those are data; what the file calls the network is not looked at."""
    assert rebuild_net(EVIL | {"width": 9}, SHAPE, 0, net=net).second.weight.shape == (9, 9)
    assert not evil.exists()


def test_a_user_s_options_come_before_the_file_s():
    assert rebuild_net(EVIL | {"width": 9}, SHAPE, 0, net={"name": HERE + "make_wide", "width": 5}).second.in_features == 5
    assert rebuild_net(MLP, SHAPE, 0, net=make_wide).second.in_features == 24  # an own network in place of the package's
    assert rebuild_net({"name": HERE + "x"}, SHAPE, 4, net=make_shaped).told == (SHAPE, 4, 1.0)


def test_a_file_s_options_do_not_take_the_memory():
    with pytest.raises(PidistillError, match="too large for the weights beside it"):
        rebuild_net(EVIL | {"width": 10**7}, SHAPE, 0, 10**6, "a", make_wide)


def test_of_a_module_a_copy_is_taken():
    net = Tied()
    copied = rebuild_net({"name": "object:Tied"}, SHAPE, 0, net=net)
    assert copied.last.weight is copied.second.weight is not net.second.weight
    assert torch.equal(copied.last.weight, net.last.weight)


@pytest.mark.parametrize("net, words", [("mlp", "got mlp"), ({"name": "object:X"}, "got {'name"), (3, "got int")])
def test_what_is_no_network_of_one_s_own_is_one_line(net, words):
    with pytest.raises(PidistillError, match=words):
        rebuild_net(EVIL, SHAPE, 0, net=net)


@pytest.mark.filterwarnings("ignore")
def test_a_network_is_taken_out_of_what_compiles_or_wraps_it():
    for wrapped in (torch.compile(Plain(), backend="eager"), nn.DataParallel(Plain()),
                    nn.DataParallel(torch.compile(Plain(), backend="eager"))):
        assert type(unwrap(wrapped)) is Plain and describe_net(None, wrapped) == {"name": "object:Plain"}
        assert copy_own(wrapped, "x").state_dict().keys() == Plain().state_dict().keys()


def test_what_cannot_be_copied_is_one_line():
    net = Plain()
    net.computed = net.first.weight * 2  # as what weight_norm leaves behind
    with pytest.raises(PidistillError, match=r"init=teacher: the network Plain cannot be copied \(RuntimeError: Only"):
        copy_own(net, "student.init=teacher")
    for make in KINDS.values():
        assert copy_own(make(), "x").state_dict().keys() == make().state_dict().keys()


def test_descriptions_are_mappings():
    assert describe_net("mlp") == {"name": "mlp"} and describe_net(MLP) == MLP and describe_net(MLP) is not MLP
    assert not any(is_own(spec) for spec in (MLP, "python:a:b", None, {"name": 3}, {}, [], {"name": "song_unet"}))
    assert copy.deepcopy(EVIL) == EVIL


EXTENSIONS = [{"times": 2}, {"temporal": 4}, {"times": 2, "temporal": 4}]
U_NETS = {"song_unet": NET, "dhariwal_unet": NET | {"name": "dhariwal_unet", "head_channels": 8}, "mlp": MLP,
          "fourier": NET | {"embedding": "fourier"}}


@pytest.mark.parametrize("extension", EXTENSIONS, ids=str)
@pytest.mark.parametrize("name", U_NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_extended_network_begins_as_it_was(name, extension, dtype):
    """Bit for bit, whatever the second time is."""
    net = shake(build_net(U_NETS[name], (1, 8, 8), CLASSES)).to(dtype).eval()
    before = copy.deepcopy(net.state_dict())
    extended, spec = extend_net(net, U_NETS[name], extension, (1, 8, 8), CLASSES)
    assert spec == U_NETS[name] | extension and not extended.training
    assert build_net(spec, (1, 8, 8), CLASSES).state_dict().keys() == extended.state_dict().keys() > before.keys()
    x, t, y = torch.randn(8, 1, 8, 8, dtype=dtype), torch.linspace(-1.5, 1, 8, dtype=dtype), torch.arange(8) % CLASSES
    for s in (-3.0, 0.0, 1.0):
        c_noise = torch.stack([t, torch.full_like(t, s)], 1) if "times" in extension else t
        assert torch.equal(extended(x, c_noise, y), net(x, t, y))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("spec", [{"name": "edm2_unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1},
                                  {"name": "diffusers_net"}, {"name": "object:Plain"}, {"name": HERE + "make_wide"}])
def test_networks_without_the_option_are_named_with_those_that_have_it(spec):
    for extension, words in zip(EXTENSIONS, ("times", "temporal", "times and temporal")):
        with pytest.raises(PidistillError, match=rf"^the network {spec['name']} has no option {words}; networks that have: "
                                                 r"dhariwal_unet, mlp, song_unet$"):
            extend_net(Plain(), spec, extension, SHAPE, 0)
    with pytest.raises(PidistillError, match=r"networks that have: none$"):
        extend_net(Plain(), MLP, {"wings": 2}, SHAPE, 0)


def test_only_a_network_s_own_weights_are_extended():
    net = build_net(MLP, SHAPE, 0)
    with pytest.raises(PidistillError, match=r"cannot be extended by times: .* has shape") as caught:
        extend_net(net, MLP | {"width": 8}, {"times": 2}, SHAPE, 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(PidistillError, match=r"cannot be extended by times: weights 4 missing, first affine.2.bias"):
        extend_net(net, MLP | {"depth": 3}, {"times": 2}, SHAPE, 0)
    extended, spec = extend_net(net, MLP, {"times": 2}, SHAPE, 0)
    assert extend_net(extended, spec, {"times": 2}, SHAPE, 0)[0].state_dict().keys() == extended.state_dict().keys()
