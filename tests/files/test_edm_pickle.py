"""NVIDIA's pickles are read, and nothing in any file is executed."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
import subprocess
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.files.edm_pickle import read_edm_pickle
from pidistill.models.teachers.base import load_teacher
from tests.edm_pickles import Call, Persistent, dumps, expect_refusal, network, write
from tests.helpers import tiny_teacher

FACTS = {"img_resolution": 8, "img_channels": 1, "label_dim": 3}


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.pkl", tiny_teacher().model, kwargs={"model_channels": 8}, sigma_data=0.5, **FACTS)


@pytest.fixture
def small(tmp_path) -> bytes:
    """A file with few weights, for tests that read it hundreds of times."""
    return write(tmp_path / "small.pkl", nn.Linear(2, 3), sigma_data=0.5, **FACTS).read_bytes()


def test_every_weight_and_fact_is_read(good):
    file, state = read_edm_pickle(good), tiny_teacher().state_dict()
    assert list(file.tensors) == list(state) and all(torch.equal(file.tensors[key], state[key]) for key in state)
    assert file.class_name == "EDMPrecond" and file.attributes == {"sigma_data": 0.5, **FACTS}
    assert file.network == {"class_name": "SongUNet", "args": (), "kwargs": {"model_channels": 8}}
    assert file.keys == ("ema", "loss_fn", "augment_pipe", "dataset_kwargs")


def test_what_edm2_s_files_hold_beside_the_network_is_read_past(tmp_path):
    """Encoders with arrays; the encoder's class is kept."""
    outer = Persistent("Precond", **FACTS)
    outer.add_module("unet", network(tiny_teacher().model, "UNet", {}))
    encoder = Persistent("StabilityVAEEncoder", scale=np.ones(4), names=np.array(["a", "b"]), bias=np.float32(0.5))
    (tmp_path / "net.pkl").write_bytes(dumps({"encoder": encoder, "dataset_kwargs": {}, "ema": outer}))
    file = read_edm_pickle(tmp_path / "net.pkl")
    assert file.encoder == "StabilityVAEEncoder" and len(file.tensors) == len(tiny_teacher().state_dict())
    with pytest.raises(PidistillError, match=r"works on latents \(StabilityVAEEncoder\)"):
        load_teacher(f"edm:{tmp_path / 'net.pkl'}")


def test_a_network_that_is_the_root_is_read_too(tmp_path):
    outer = Persistent("Precond", **FACTS)
    outer.add_module("unet", network(tiny_teacher().model, "UNet", {}))
    (tmp_path / "net.pkl").write_bytes(dumps(outer))
    assert read_edm_pickle(tmp_path / "net.pkl").class_name == "Precond"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16, torch.int64])
def test_types_views_and_shared_storages(tmp_path, dtype):
    outer = Persistent("EDMPrecond", number=np.float64(2.5), whole=np.int64(3))
    inner = Persistent("SongUNet")
    base = torch.arange(24).to(dtype)
    inner.register_buffer("part", base[4:16].view(3, 4).T)
    inner.register_buffer("rest", base[20:])
    inner.register_buffer("scalar", torch.tensor(7).to(dtype))
    inner.register_buffer("empty", torch.empty(0, 2, dtype=dtype))
    inner.register_buffer("hidden", torch.ones(2), persistent=False)
    outer.add_module("model", inner)
    (tmp_path / "a.pkl").write_bytes(dumps({"ema": outer}))
    file = read_edm_pickle(tmp_path / "a.pkl")
    assert list(file.tensors) == [f"model.{name}" for name in ("part", "rest", "scalar", "empty")]
    for name in ("part", "rest", "scalar", "empty"):
        ours, theirs = file.tensors[f"model.{name}"], getattr(inner, name)
        assert ours.dtype == dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
    assert file.attributes["number"] == 2.5 and file.attributes["whole"] == 3


# Hostile files -------------------------------------------------------------------------------------------------------------


CALLS = [(os.system, "touch {}"), (subprocess.run, ["touch", "{}"]), (eval, "open('{}', 'w')"), (exec, "open('{}', 'w')"),
         (open, "{}", "w"), (getattr, "a", "b"), (__import__, "os"), (torch.load, "{}"), (np.load, "{}"), (print, "x")]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("function, args", [(f, args) for f, *args in CALLS])
def test_calls_are_never_made(tmp_path, function, args, protocol):
    marker = tmp_path / "executed"
    fill = lambda a: [x.format(marker) for x in a] if isinstance(a, list) else a.format(marker)
    call = Call(function, *map(fill, args))
    for root in (call, {"ema": call}, [call]):
        message = expect_refusal(tmp_path / "bad.pkl", pickle.dumps(root, protocol=protocol))
        assert "refers to" in message
    assert not marker.exists()


def test_state_reaches_records_alone(tmp_path):
    """BUILD with __class__, __dict__ or __setstate__ is data of an inert record."""
    outer = Persistent("EDMPrecond", __class__="x", __setstate__="y", __dict__={"a": 1}, __init__="z")
    outer.add_module("model", Persistent("SongUNet"))
    (tmp_path / "a.pkl").write_bytes(dumps({"ema": outer}))
    file = read_edm_pickle(tmp_path / "a.pkl")
    assert type(file).__name__ == "EDMPickle" and not any(key.startswith("_") for key in file.attributes)


def test_deep_wide_and_circular_structures_end(tmp_path):
    for content in (b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".", b"\x80\x04" + b")" + b"\x85" * 200_000 + b".",
                    b"\x80\x04}" + b")" + b"\x85" * 100_000 + b"K\x01s.", b"\x80\x04" + b"(" * 100_000 + b".",
                    b"\x80\x04]\x94" + b"h\x00a" * 50_000 + b"."):
        expect_refusal(tmp_path / "a.pkl", content)
    outer = Persistent("EDMPrecond")
    inner = Persistent("SongUNet")
    outer.add_module("model", inner)
    meta = dumps({"ema": outer})
    child = inner
    for _ in range(80):
        child._modules["a"] = Persistent("Block")
        child = child._modules["a"]
    assert "contains itself" in expect_refusal(tmp_path / "a.pkl", dumps({"ema": outer}))
    assert len(meta) < 10_000


def double_often(value, times, double):
    for _ in range(times):
        value = double(value)
    return value


@pytest.mark.parametrize("attribute", [
    double_often("ha", 15, lambda a: [a, a] * 2), double_often((), 7, lambda a: (a,) * 40), ["x"] * 60_000])
def test_attributes_that_name_one_object_a_billion_times_end(tmp_path, attribute):
    outer = Persistent("EDMPrecond", big=attribute, **FACTS)
    outer.add_module("model", Persistent("SongUNet"))
    content, began = dumps({"ema": outer}), time.process_time()
    (tmp_path / "a.pkl").write_bytes(content)
    try:
        assert "big" not in read_edm_pickle(tmp_path / "a.pkl").attributes
    except PidistillError as error:
        assert "attributes of more than" in str(error)
    assert time.process_time() - began < 3


@pytest.mark.parametrize("part", ["modules", "weights"])
def test_modules_that_are_shared_a_billion_times_end(tmp_path, part):
    """3^20 ways to one module, and a thousand names in 2^20 places, in a small file."""
    block = Persistent("Block")
    if part == "weights":
        block._buffers.update({f"p{k}": None for k in range(1000)})
    for _ in range(20):
        block, below = Persistent("Block"), block
        block._modules.update(dict.fromkeys("abc" if part == "modules" else "ab", below))
    outer = Persistent("EDMPrecond")
    outer.add_module("model", block)
    began = time.process_time()
    assert "more than 50,000 names" in expect_refusal(tmp_path / "a.pkl", dumps({"ema": outer}))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\x00", ""])
def test_names_do_not_reach_the_terminal(tmp_path, name):
    outer, inner = Persistent("EDMPrecond"), Persistent("SongUNet")
    inner._buffers[name] = torch.ones(1)
    outer.add_module("model", inner)
    (tmp_path / "a.pkl").write_bytes(dumps({"ema": outer}))
    if name:
        expect_refusal(tmp_path / "a.pkl")


@pytest.mark.parametrize("root, words", [
    ({}, "no network under `ema`"), ({"net": 1}, "it holds net"), (3, "no network"),
    ({"ema": {"a": torch.ones(1)}}, "no network"), ({"ema": Persistent("EDMPrecond")}, "no `model` or `unet`"),
    (OrderedDict(ema=1), "no network")])
def test_files_without_a_network(tmp_path, root, words):
    assert words in expect_refusal(tmp_path / "a.pkl", dumps(root))


def test_what_is_no_pickle(tmp_path):
    for content in (b"", b"\x80", b"PK\x03\x04", b"<html>", b"\x93NUMPY", bytes(100), b"\x80\x04"):
        expect_refusal(tmp_path / "a.pkl", content)
    assert "does not exist" in expect_refusal(tmp_path / "no.pkl")
    (tmp_path / "folder.pkl").mkdir()
    expect_refusal(tmp_path / "folder.pkl")


# Damage --------------------------------------------------------------------------------------------------------------------


def test_truncation_anywhere_is_one_line(tmp_path, small):
    for _, _, at in pickletools.genops(small):
        expect_refusal(tmp_path / "a.pkl", small[:at])


def test_flipped_bits_are_one_line_or_change_numbers_alone(tmp_path, small):
    content, rng = small, random.Random(1)
    places = [at for op, _, at in pickletools.genops(content)]  # at instructions, where flips matter most
    for k in range(2000):
        damaged = bytearray(content)
        at = rng.choice(places) + rng.randrange(3) if k % 2 else rng.randrange(len(content))
        damaged[min(at, len(content) - 1)] ^= 1 << rng.randrange(8)
        (tmp_path / "a.pkl").write_bytes(damaged)
        try:
            file = read_edm_pickle(tmp_path / "a.pkl")
        except PidistillError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(value, torch.Tensor) for value in file.tensors.values())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"\x80\x04", b"\x80\x02", b"\x80\x04}\x8c\x03ema"]))
def test_random_bytes_are_one_line(tmp_path_factory, content, head):
    path = tmp_path_factory.getbasetemp() / "random.pkl"
    path.write_bytes(head + content)
    try:
        read_edm_pickle(path)
    except PidistillError as error:
        assert "\n" not in str(error)
