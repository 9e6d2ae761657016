"""NVIDIA's pickles are read, and nothing in any file is executed."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
import struct
import subprocess
import time
import tracemalloc
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.files.edm_pickle import read_edm_pickle
from pidistill.files.pickle_machine import BoundedReader, Machine
from pidistill.models.teachers.base import load_teacher
from tests.edm_pickles import Persistent, dumps, network, write
from tests.helpers import tiny_teacher

FACTS = {"img_resolution": 8, "img_channels": 1, "label_dim": 3}


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.pkl", tiny_teacher().model, kwargs={"model_channels": 8}, sigma_data=0.5, **FACTS)


@pytest.fixture
def small(tmp_path) -> bytes:
    """A file with few weights, for tests that read it hundreds of times."""
    return write(tmp_path / "small.pkl", nn.Linear(2, 3), sigma_data=0.5, **FACTS).read_bytes()


def refused(path, content: bytes | None = None) -> str:
    """The one line that reading ends with."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PidistillError) as error:
        read_edm_pickle(path)
    message = str(error.value)
    assert "\n" not in message and message.isprintable() and len(message) < 400
    return message


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


class Call:
    """Reduces to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


CALLS = [(os.system, "touch {}"), (subprocess.run, ["touch", "{}"]), (eval, "open('{}', 'w')"), (exec, "open('{}', 'w')"),
         (open, "{}", "w"), (getattr, "a", "b"), (__import__, "os"), (torch.load, "{}"), (np.load, "{}"), (print, "x")]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("function, args", [(f, args) for f, *args in CALLS])
def test_calls_are_never_made(tmp_path, function, args, protocol):
    marker = tmp_path / "executed"
    fill = lambda a: [x.format(marker) for x in a] if isinstance(a, list) else a.format(marker)
    call = Call(function, *map(fill, args))
    for root in (call, {"ema": call}, [call]):
        message = refused(tmp_path / "bad.pkl", pickle.dumps(root, protocol=protocol))
        assert "refers to" in message
    assert not marker.exists()


def assemble(*parts) -> bytes:
    """A pickle of protocol 4 from instructions: bytes as they are, text as a short string."""
    text = lambda part: b"\x8c" + bytes([len(part)]) + part.encode()
    return b"\x80\x04" + b"".join(part if isinstance(part, bytes) else text(part) for part in parts) + b"."


@pytest.mark.parametrize("module, attribute", [
    ("os", "system"), ("builtins", "eval"), ("posix", "system"), ("torch.nn.modules.linear", "F.os.system"),
    ("collections", "OrderedDict.fromkeys.__globals__"), ("torch.nn.modules", "os;system"), ("torch.storage", "os"),
    ("torch", "FloatStorage"), ("torch_utils.persistence", "_src_to_module"), ("numpy", "load"), ("dnnlib.util", "open_url"),
    ("torch.nn.modules.container.__import__('os')", "x"), ("functools", "partial"), ("a\nb", "c\td")])
def test_only_names_of_networks_are_known(tmp_path, module, attribute):
    """Dotted names, and names that look like networks', are names at most: records without a function behind them."""
    content = assemble(module, attribute, b"\x93", b")", b"R")
    message = refused(tmp_path / "bad.pkl", content)
    assert "refers to" in message or "no network" in message


def test_stack_global_wants_strings(tmp_path):
    assert "expected" in refused(tmp_path / "bad.pkl", assemble(b"K\x01", b"K\x02", b"\x93"))


@pytest.mark.parametrize("instruction", [
    b"\x82\x01", b"\x83\x01\x00", b"Qx\n", b"i os\nsystem\n", b"(os\nsystem\no", b"\x92", b"\x97", b"\x98", b"0", b"P1\n"])
def test_other_instructions_are_refused(tmp_path, instruction):
    """Extension codes, persistent ids, INST, OBJ, NEWOBJ_EX, out-of-band buffers."""
    refused(tmp_path / "bad.pkl", assemble(b"}", instruction))


def test_state_reaches_records_alone(tmp_path):
    """BUILD with __class__, __dict__ or __setstate__ is data of an inert record."""
    outer = Persistent("EDMPrecond", __class__="x", __setstate__="y", __dict__={"a": 1}, __init__="z")
    outer.add_module("model", Persistent("SongUNet"))
    (tmp_path / "a.pkl").write_bytes(dumps({"ema": outer}))
    file = read_edm_pickle(tmp_path / "a.pkl")
    assert type(file).__name__ == "EDMPickle" and not any(key.startswith("_") for key in file.attributes)


def storage(numel: int, data: bytes, claimed: int | None = None) -> bytes:
    """What torch.save writes of a FloatStorage."""
    file = BytesIO()
    torch.save(torch.zeros(1).storage(), file, _use_new_zipfile_serialization=False)
    head = file.getvalue()[:-12]
    at = head.rindex(b"K\x01N")  # numel = 1, view metadata None
    big = lambda n: b"\x8a\x08" + struct.pack("<q", n)
    return head[:at] + big(numel) + head[at + 2:] + struct.pack("<q", numel if claimed is None else claimed) + data


def with_tensor(stored: bytes, offset=0, size=(1,), stride=(1,)) -> bytes:
    """A network whose one weight is this call of _rebuild_tensor_v2."""
    def number(n: int) -> bytes:
        data = n.to_bytes(16, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    tuples = lambda values: b"(" + b"".join(map(number, values)) + b"t"
    load = [b"\x8c\x0dtorch.storage", b"\x8c\x10_load_from_bytes", b"\x93", b"B" + struct.pack("<I", len(stored)) + stored,
            b"\x85R"]
    tensor = b"".join([b"\x8c\x0ctorch._utils", b"\x8c\x12_rebuild_tensor_v2", b"\x93", b"(", *load, number(offset),
                       tuples(size), tuples(stride), b"\x89N", b"t", b"R"])
    outer, inner = Persistent("EDMPrecond"), Persistent("SongUNet")
    inner.register_buffer("w", None)
    inner._buffers["w"] = "PLACEHOLDER"
    outer.add_module("model", inner)
    whole = dumps({"ema": outer})
    mark = b"\x8c\x0bPLACEHOLDER\x94"
    assert whole.count(mark) == 1
    frame = whole.index(b"\x95")
    return whole[:frame] + whole[frame + 9:].replace(mark, tensor + b"\x94")


def test_a_handmade_tensor_is_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(with_tensor(storage(2, struct.pack("<2f", 1.5, -2)), size=(2,)))
    assert read_edm_pickle(tmp_path / "a.pkl").tensors["model.w"].tolist() == [1.5, -2]


@pytest.mark.parametrize("bad", [
    {"size": (3,)}, {"size": (2,), "offset": 1}, {"offset": -1}, {"size": (-2,)}, {"size": (2,), "stride": (-1,)},
    {"size": (2,), "stride": (2**62,)}, {"size": (10**10,), "stride": (0,)}, {"size": (2, 2), "stride": (0, 1)},
    {"size": (2**40, 2**40)}, {"size": (1,), "stride": ()}, {"size": (1,) * 70, "stride": (1,) * 70}, {"offset": 2**63}])
def test_tensors_stay_within_their_storage(tmp_path, bad):
    refused(tmp_path / "a.pkl", with_tensor(storage(2, bytes(8)), **bad))


@pytest.mark.parametrize("stored", [
    storage(10**10, bytes(8)), storage(2, bytes(8), claimed=10**10), storage(2, bytes(4)), storage(2, bytes(12)),
    storage(-1, b""), storage(2, bytes(8))[:40], b"", b"PK\x03\x04" + bytes(60), pickle.dumps(Call(os.system, "true")),
    pickle.dumps(0x1950a86a20f9469cfc6c) + pickle.dumps(1001) + pickle.dumps(Call(os.system, "touch executed"))])
def test_storages_are_what_they_say(tmp_path, monkeypatch, stored):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "a.pkl", with_tensor(stored, size=(1,)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("claim", [
    b"\x8e" + struct.pack("<Q", 10 * 2**30), b"B" + struct.pack("<I", 2**32 - 1), b"\x8b" + struct.pack("<i", 2**31 - 1),
    b"\x8d" + struct.pack("<Q", 2**62), b"\x96" + struct.pack("<Q", 2**40), b"X" + struct.pack("<I", 2**32 - 1),
    b"r" + struct.pack("<I", 2**32 - 1), b"\x95" + struct.pack("<Q", 2**60), b"\x8b" + struct.pack("<i", -5)])
def test_claims_of_gigabytes_cost_nothing(tmp_path, claim):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04}" + claim + b"}" * 50)
    tracemalloc.start()
    refused(tmp_path / "a.pkl")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_deep_wide_and_circular_structures_end(tmp_path):
    for content in (b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".", b"\x80\x04" + b")" + b"\x85" * 200_000 + b".",
                    b"\x80\x04}" + b")" + b"\x85" * 100_000 + b"K\x01s.", b"\x80\x04" + b"(" * 100_000 + b".",
                    b"\x80\x04]\x94" + b"h\x00a" * 50_000 + b"."):
        refused(tmp_path / "a.pkl", content)
    outer = Persistent("EDMPrecond")
    inner = Persistent("SongUNet")
    outer.add_module("model", inner)
    meta = dumps({"ema": outer})
    child = inner
    for _ in range(80):
        child._modules["a"] = Persistent("Block")
        child = child._modules["a"]
    assert "contains itself" in refused(tmp_path / "a.pkl", dumps({"ema": outer}))
    assert len(meta) < 10_000


def doubled(value, times, double):
    for _ in range(times):
        value = double(value)
    return value


@pytest.mark.parametrize("attribute", [
    doubled("ha", 15, lambda a: [a, a] * 2), doubled((), 7, lambda a: (a,) * 40), ["x"] * 60_000])
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
    assert "more than 50,000 names" in refused(tmp_path / "a.pkl", dumps({"ema": outer}))
    assert time.process_time() - began < 5


def test_ordered_dictionaries_are_filled_as_others_are(tmp_path):
    """Never from a list of pairs: it could be long and given often, and its keys nested."""
    pairs = b"](K\x01K\x02\x86" + b")" + b"\x85" * 100_000 + b"N\x86" + b"e"
    for content in (pairs, b"](K\x01K\x02\x86e"):
        refused(tmp_path / "a.pkl", assemble("collections", "OrderedDict", b"\x93", content, b"\x85R"))


def test_the_bytes_of_a_storage_are_read_once():
    """However often the file asks for them."""
    stored = storage(2, bytes(8))
    body = [b"\x80\x04]\x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93\x94a",
            b"B" + struct.pack("<I", len(stored)) + stored + b"\x94a", b"h\x00h\x01\x85Ra" * 1000, b"."]
    content = b"".join(body)
    _, _, first, *others = Machine(BoundedReader(BytesIO(content), len(content))).run()
    assert len(others) == 999 and all(other is first for other in others)


def test_programs_are_not_endless(tmp_path, monkeypatch):
    monkeypatch.setattr("pidistill.files.pickle_machine.INSTRUCTIONS", 20_000)
    for body in (b"N" * 30_000, b"]\x94" + b"h\x00" * 30_000, b"}\x94" + b"h\x00h\x00b" * 9_000):
        assert "20,000 instructions" in refused(tmp_path / "a.pkl", b"\x80\x04" + body + b".")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\x00", ""])
def test_names_do_not_reach_the_terminal(tmp_path, name):
    outer, inner = Persistent("EDMPrecond"), Persistent("SongUNet")
    inner._buffers[name] = torch.ones(1)
    outer.add_module("model", inner)
    (tmp_path / "a.pkl").write_bytes(dumps({"ema": outer}))
    if name:
        refused(tmp_path / "a.pkl")


@pytest.mark.parametrize("root, words", [
    ({}, "no network under `ema`"), ({"net": 1}, "it holds net"), (3, "no network"),
    ({"ema": {"a": torch.ones(1)}}, "no network"), ({"ema": Persistent("EDMPrecond")}, "no `model` or `unet`"),
    (OrderedDict(ema=1), "no network")])
def test_files_without_a_network(tmp_path, root, words):
    assert words in refused(tmp_path / "a.pkl", dumps(root))


def test_what_is_no_pickle(tmp_path):
    for content in (b"", b"\x80", b"PK\x03\x04", b"<html>", b"\x93NUMPY", bytes(100), b"\x80\x04"):
        refused(tmp_path / "a.pkl", content)
    assert "does not exist" in refused(tmp_path / "no.pkl")
    (tmp_path / "folder.pkl").mkdir()
    refused(tmp_path / "folder.pkl")


# Damage --------------------------------------------------------------------------------------------------------------------


def test_truncation_anywhere_is_one_line(tmp_path, small):
    for _, _, at in pickletools.genops(small):
        refused(tmp_path / "a.pkl", small[:at])


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
