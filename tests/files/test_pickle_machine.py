"""The machine that runs pickles makes plain values and inert records, and nothing else."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from pidistill.files.edm_pickle import read_edm_pickle
from pidistill.files.pickle_machine import BoundedReader, Machine, MalformedPickle, Record, StoredTensor, shorten
from tests.edm_pickles import Call, assemble, expect_refusal, write_network, write_storage


def run(content: bytes) -> Any:
    return Machine(BoundedReader(BytesIO(content), len(content))).run()


@pytest.mark.parametrize("module, attribute", [
    ("os", "system"), ("builtins", "eval"), ("posix", "system"), ("torch.nn.modules.linear", "F.os.system"),
    ("collections", "OrderedDict.fromkeys.__globals__"), ("torch.nn.modules", "os;system"), ("torch.storage", "os"),
    ("torch", "FloatStorage"), ("torch_utils.persistence", "_src_to_module"), ("numpy", "load"), ("dnnlib.util", "open_url"),
    ("torch.nn.modules.container.__import__('os')", "x"), ("functools", "partial"), ("a\nb", "c\td")])
def test_only_names_of_networks_are_known(tmp_path, module, attribute):
    """Dotted names, and names that look like networks', are names at most: records without a function behind them."""
    content = assemble(module, attribute, b"\x93", b")", b"R")
    message = expect_refusal(tmp_path / "bad.pkl", content)
    assert "refers to" in message or "no network" in message


def test_stack_global_wants_strings(tmp_path):
    assert "expected" in expect_refusal(tmp_path / "bad.pkl", assemble(b"K\x01", b"K\x02", b"\x93"))


@pytest.mark.parametrize("instruction", [
    b"\x82\x01", b"\x83\x01\x00", b"Qx\n", b"i os\nsystem\n", b"(os\nsystem\no", b"\x92", b"\x97", b"\x98", b"0", b"P1\n"])
def test_other_instructions_are_refused(tmp_path, instruction):
    """Extension codes, persistent ids, INST, OBJ, NEWOBJ_EX, out-of-band buffers."""
    expect_refusal(tmp_path / "bad.pkl", assemble(b"}", instruction))


def test_a_handmade_tensor_is_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(write_network(write_storage(2, struct.pack("<2f", 1.5, -2)), size=(2,)))
    assert read_edm_pickle(tmp_path / "a.pkl").tensors["model.w"].tolist() == [1.5, -2]


@pytest.mark.parametrize("bad", [
    {"size": (3,)}, {"size": (2,), "offset": 1}, {"offset": -1}, {"size": (-2,)}, {"size": (2,), "stride": (-1,)},
    {"size": (2,), "stride": (2**62,)}, {"size": (10**10,), "stride": (0,)}, {"size": (2, 2), "stride": (0, 1)},
    {"size": (2**40, 2**40)}, {"size": (1,), "stride": ()}, {"size": (1,) * 70, "stride": (1,) * 70}, {"offset": 2**63}])
def test_tensors_stay_within_their_storage(tmp_path, bad):
    expect_refusal(tmp_path / "a.pkl", write_network(write_storage(2, bytes(8)), **bad))


@pytest.mark.parametrize("stored", [
    write_storage(10**10, bytes(8)), write_storage(2, bytes(8), claimed=10**10), write_storage(2, bytes(4)),
    write_storage(2, bytes(12)), write_storage(-1, b""), write_storage(2, bytes(8))[:40], b"", b"PK\x03\x04" + bytes(60),
    pickle.dumps(Call(os.system, "true")),
    pickle.dumps(0x1950a86a20f9469cfc6c) + pickle.dumps(1001) + pickle.dumps(Call(os.system, "touch executed"))])
def test_storages_are_what_they_say(tmp_path, monkeypatch, stored):
    monkeypatch.chdir(tmp_path)
    expect_refusal(tmp_path / "a.pkl", write_network(stored, size=(1,)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("claim", [
    b"\x8e" + struct.pack("<Q", 10 * 2**30), b"B" + struct.pack("<I", 2**32 - 1), b"\x8b" + struct.pack("<i", 2**31 - 1),
    b"\x8d" + struct.pack("<Q", 2**62), b"\x96" + struct.pack("<Q", 2**40), b"X" + struct.pack("<I", 2**32 - 1),
    b"r" + struct.pack("<I", 2**32 - 1), b"\x95" + struct.pack("<Q", 2**60), b"\x8b" + struct.pack("<i", -5)])
def test_claims_of_gigabytes_cost_nothing(tmp_path, claim):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04}" + claim + b"}" * 50)
    tracemalloc.start()
    expect_refusal(tmp_path / "a.pkl")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_ordered_dictionaries_are_filled_as_others_are(tmp_path):
    """Never from a list of pairs: it could be long and given often, and its keys nested."""
    pairs = b"](K\x01K\x02\x86" + b")" + b"\x85" * 100_000 + b"N\x86" + b"e"
    for content in (pairs, b"](K\x01K\x02\x86e"):
        expect_refusal(tmp_path / "a.pkl", assemble("collections", "OrderedDict", b"\x93", content, b"\x85R"))


def test_the_bytes_of_a_storage_are_read_once():
    """However often the file asks for them."""
    stored = write_storage(2, bytes(8))
    body = [b"\x80\x04]\x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93\x94a",
            b"B" + struct.pack("<I", len(stored)) + stored + b"\x94a", b"h\x00h\x01\x85Ra" * 1000, b"."]
    content = b"".join(body)
    _, _, first, *others = Machine(BoundedReader(BytesIO(content), len(content))).run()
    assert len(others) == 999 and all(other is first for other in others)


def test_programs_are_not_endless(tmp_path, monkeypatch):
    monkeypatch.setattr("pidistill.files.pickle_machine.INSTRUCTIONS", 20_000)
    for body in (b"N" * 30_000, b"]\x94" + b"h\x00" * 30_000, b"}\x94" + b"h\x00h\x00b" * 9_000):
        assert "20,000 instructions" in expect_refusal(tmp_path / "a.pkl", b"\x80\x04" + body + b".")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_what_pickle_makes_of_them(protocol):
    value = {"a": [1, -2**40, 2.5, None, True, False], 3: ("x", ()), None: {"deep": [{}, [], "é" * 300]}}
    value["b"] = value["a"]  # one object in two places
    if protocol > 2:  # which has no bytes, and makes them by a call
        value["bytes"] = b"\0\xff"
    copy = run(pickle.dumps(value, protocol=protocol))
    assert copy == value and copy["a"] is copy["b"]


def test_numbers_of_numpy_are_numbers_and_arrays_are_records():
    numbers = [np.float32(0.5), np.float64(-2.5), np.int64(7), np.bool_(True), np.uint8(200), np.float16(1.5)]
    assert run(pickle.dumps(numbers, protocol=4)) == [0.5, -2.5, 7, True, 200, 1.5]
    assert isinstance(run(pickle.dumps(np.ones(3), protocol=4)), Record)


def test_sets_are_lists():
    assert sorted(run(pickle.dumps({1, 2, 3}, protocol=4))) == [1, 2, 3]


def test_nothing_beyond_the_size_is_read():
    reader = BoundedReader(BytesIO(b"abc\ndef"), 5)
    assert reader.readline() == b"abc\n" and reader.tell() == 4 and reader.read(1) == b"d"
    for n in (1, -1):
        with pytest.raises(MalformedPickle, match="truncated"):
            reader.read(n)


def test_tensors_of_one_storage_share_its_memory():
    content = write_storage(4, struct.pack("<4f", 0, 1, 2, 3))
    storage = run(b"\x80\x04\x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93B" + struct.pack("<I", len(content))
                  + content + b"\x85R.")
    assert (storage.dtype, storage.count) == ("float32", 4)
    first, turned = StoredTensor(storage, 1, (2,), (1,)).load(), StoredTensor(storage, 0, (2, 2), (1, 2)).load()
    assert first.tolist() == [1, 2] and turned.tolist() == [[0, 2], [1, 3]]
    first[0] = 9
    assert turned[1, 0] == 9


def test_what_is_shown_of_a_value_is_short_and_printable():
    assert shorten(("a", "b\n")) == "a, b?" and shorten("\x1b[31m" + "x" * 500) == "?[31m" + "x" * 75
    assert len(shorten(tuple("x" * 80 for _ in range(30)))) == 120
