"""The corpus: files made to harm, each refused in one printable line; nothing runs, nothing is allocated on a claim."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from tests.edm_pickles import dumps
from tests.system.fuzz.readers import LABELS, PIXELS, PNGS, READERS, STATISTICS, network, npz, onnx_model, saved, zipped
from tests.system.fuzz.test_readers import one_line, place


class Evil:
    """Would make a file if it were unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


class Allocates:
    def __reduce__(self):
        return bytearray, (10**11,)


def header(record: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header."""
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(*shape: int, start: int = 0, end: int = 4, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def png(width: int, height: int) -> bytes:
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**6))),
              (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(body)) + kind + body
                                           + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)


def linked(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


def claiming(data: bytes, size: int) -> bytes:
    """An archive whose members all say that they are that large."""
    first, *records = data.split(b"PK\1\2")
    return b"PK\1\2".join([first, *(record[:20] + struct.pack("<I", size) + record[24:] for record in records)])


def inside(depth: int) -> bytes:
    """A graph in a graph in a graph ..."""
    def field(number: int, value: bytes) -> bytes:
        length, coded = len(value), b""
        while length > 127:
            coded, length = coded + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + coded + bytes([length]) + value

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


DEEP = 100_000


def layers(form: str) -> bytes:
    """Nine aliases of nine aliases of ...: 9^29 values in a kilobyte."""
    return b"".join((form % (k, k, ", ".join([f"*a{k - 1}"] * 9))).encode() for k in range(1, 30))


YAML = {
    "alias bomb": b"a0: &a0 [x]\n" + layers("a%d: &a%d [%s]\n"), "alias of itself": b"a: &a [*a]",
    "merge bomb": b"a0: &a0 {x: 1}\n" + layers("a%d: &a%d {<<: [%s]}\n"),
    "deep lists": b"a: " + b"[" * DEEP, "deep mappings": b"{a: " * DEEP, "deep blocks": b"- " * DEEP,
    "python": b"a: !!python/object/apply:os.system ['touch executed']", "python name": b"a: !!python/name:os.system",
    "long integer": b"a: " + b"9" * DEEP, "long hexadecimal": b"a: 0x" + b"f" * DEEP, "sexagesimal": b"a: 1" + b":59" * DEEP,
    "key twice": b"train: {steps: 1, steps: 2}", "no date": b"a: 2001-02-30", "tag of no value": b"a: !!timestamp x",
    "empty integer": b"a: !!int ''", "no truth": b"a: !!bool x", "key is a list": b"? [1]\n: 2", "control": b"a: \x07",
    "huge": b"a: 1\n" * 60_000, "not utf-8": b"a: \xff"}
JSON = {
    "deep lists": b'{"a": ' + b"[" * DEEP, "deep mappings": b'{"a":' * DEEP,
    "deep and whole": b'{"a": ' + b"[" * 90 + b"]" * 90 + b"}", "long integer": b'{"a": ' + b"9" * DEEP + b"}",
    "key twice": b'{"a": 1, "a": 2}', "list": b"[]", "not utf-8": b'{"a": "\xff"}', "utf-16": '{"a": 1}'.encode("utf-16"),
    "huge": b'{"a": "' + b"x" * 16 * 10**6 + b'"}'}
TENSORS = {
    "long header": header({}, length=2**63), "header of the file": header({}, bytes(100), length=10**8),
    "overlap": header({"a": tensor(1), "b": tensor(1)}, bytes(4)),
    "hole": header({"a": tensor(1), "b": tensor(1, start=8, end=12)}, bytes(12)),
    "out of range": header({"a": tensor(1, end=10**12)}, bytes(4)), "negative": header({"a": tensor(1, start=-4, end=0)}),
    "backwards": header({"a": tensor(1, start=4, end=0)}, bytes(4)),
    "lying shape": header({"a": tensor(10**9, 10**9)}, bytes(4)),
    "overflow": header({"a": tensor(2**32, 2**32, 2**32)}, bytes(4)),
    "negative shape": header({"a": tensor(-1, -1)}, bytes(4)),
    "key twice": header(b'{"a": %s, "a": %s}' % ((json.dumps(tensor(1)).encode(),) * 2), bytes(4)),
    "unknown type": header({"a": tensor(1, dtype="Q32")}, bytes(4)), "deep": header(b"[" * DEEP),
    "fractions": header({"a": tensor(1) | {"shape": [1.0]}}, bytes(4)), "trailing": header({"a": tensor(1)}, bytes(8)),
    "list": header([1]), "names": header({"a\n\x1b[31m": tensor(1, end=3)}, bytes(3))}
EXECUTES = {
    "os.system": pickle.dumps(Evil()), "protocol 0": pickle.dumps(Evil(), 0),
    "in a list": pickle.dumps({"ema": [Evil()], "fid": {"mu": Evil(), "sigma": Evil()}})}
ARCHIVES = {
    "up": zipped({"../../a.png": PNGS["0.png"]}), "absolute": zipped({"/tmp/a.png": PNGS["0.png"]}),
    "drive": zipped({"C:\\a.png": PNGS["0.png"]}), "link": linked("a.png"), "claims": claiming(zipped(PNGS), 2**32 - 2),
    "bomb": zipped({"a.png": bytes(110 * 10**6)}), "image bomb": zipped({"a.png": png(60_000, 60_000)}),
    "labels bomb": zipped(PNGS | {"dataset.json": b"[" * DEEP}), "pickle": zipped({"a.png": EXECUTES["os.system"]}),
    "labels twice": zipped(PNGS | {"dataset.json": b'{"labels": 1,' + LABELS[1:]})}
WANTED = ("mu", "sigma", "images")
LYING = npy("'<f8'", "(1000000, 1000000)", bytes(100))
ARRAYS = {
    "lying header": zipped({f"{key}.npy": LYING for key in WANTED}), "up": zipped({"../images.npy": LYING, "mu.npy": LYING}),
    "objects": npz(**dict.fromkeys(WANTED, np.array([Evil(), Evil()]))),
    "negative": zipped({f"{key}.npy": npy("'|u1'", "(-1, -8, 8)", bytes(64)) for key in WANTED}),
    "deep header": zipped({f"{key}.npy": npy("(" * 9000, "()") for key in WANTED}),
    "claims": claiming(npz(True, images=PIXELS, **STATISTICS), 2**32 - 2)}
PICKLES = EXECUTES | {"code in a network": dumps({"ema": network(), "x": Evil()})}
STATES = EXECUTES | {
    "allocates": pickle.dumps(Allocates()), "object": saved({"a": Evil()}), "deflated": zipped({"a/data.pkl": bytes(10**7)}),
    "one element for many": saved({"a": torch.zeros(1).expand(10**9)}), "names": saved({"a\n": torch.ones(1)}),
    "meta": saved({"a": torch.empty(10**9, device="meta")}), "sparse": saved({"a": torch.eye(3).to_sparse()}),
    "number": saved({"a": 3})}
PICTURES = {
    "decompression bomb": png(60_000, 60_000), "larger than it says": png(3, 3)[:-20], "gif": b"GIF89a" + bytes(30),
    "pickle": EXECUTES["os.system"]}
ONNX = {
    "up": onnx_model("../../etc/passwd"), "absolute": onnx_model("/etc/passwd"), "down and up": onnx_model("a/../../b"),
    "missing": onnx_model("weights.bin"), "link": onnx_model("out"), "NUL": onnx_model("a.onnx\0b"),
    "folder": onnx_model("."), "deep": inside(40), "ORT": b"\0\0\0\0ORTM" + bytes(50), "pickle": EXECUTES["os.system"]}
FILES = [
    (("yaml", "configuration"), YAML), (("json", "labels"), JSON), (("safetensors header", "safetensors"), TENSORS),
    (("edm pickle", "reference pickle"), PICKLES), (("state dictionary",), STATES), (("images zip",), ARCHIVES),
    (("images npz", "data", "reference"), ARRAYS), (("png", "jpeg", "webp", "bmp"), PICTURES), (("onnx structure",), ONNX)]
CORPUS = [(reader, name, content) for readers, files in FILES for reader in readers for name, content in files.items()]


@pytest.mark.parametrize("reader, name, content", CORPUS, ids=[f"{reader}-{name}" for reader, name, _ in CORPUS])
def test_hostile_files_are_refused(reader, name, content, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    path = place(READERS[reader], tmp_path / "in")
    path.write_bytes(content)
    (tmp_path / "in" / "out").symlink_to("/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    line = one_line(lambda: READERS[reader].read(path))
    assert line and path.name in line and "MemoryError" not in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused(reader, tmp_path):
    """A pipe would wait for ever."""
    path = place(READERS[reader], tmp_path)
    os.mkfifo(path)
    assert one_line(lambda: READERS[reader].read(path))
    path.unlink()
    path.mkdir()
    assert one_line(lambda: READERS[reader].read(path))
