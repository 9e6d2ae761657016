"""Pickles of the structure of NVIDIA's are written around our own networks, whole or hostile; the package writes none."""

from __future__ import annotations

import pickle
import struct
import sys
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

STATE = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
SOURCE = "raise SystemExit('the source in the file was executed')"


class Persistent(nn.Module):
    """A module of NVIDIA's, by the name of its class: plain attributes, constructor arguments, children."""

    def __init__(self, class_name: str, kwargs: dict[str, Any] | None = None, args: tuple = (), **attributes: Any):
        super().__init__()
        self.class_name, self.extra = class_name, attributes
        self.made_with = {"_init_args": args, "_init_kwargs": kwargs or {}}


class Writer(pickle.Pickler):
    def reducer_override(self, obj):
        if not isinstance(obj, nn.Module) or type(obj).__module__.startswith("torch.nn."):
            return NotImplemented
        state = OrderedDict((key, vars(obj)[key]) for key in STATE if key in vars(obj))
        name = type(obj).__name__
        if isinstance(obj, Persistent):
            name, state = obj.class_name, state | obj.extra | obj.made_with
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": name, "state": dict(state)}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def dumps(root: Any) -> bytes:
    """The pickle of an object in which modules are persistent."""
    names = ("torch_utils", "torch_utils.persistence")
    package, module = (ModuleType(name) for name in names)

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("called")

    _reconstruct_persistent_obj.__module__ = names[1]
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {names[0]: package, names[1]: module}
    try:
        file = BytesIO()
        Writer(file, protocol=4).dump(root)
        return file.getvalue()
    finally:
        for name in names:
            del sys.modules[name]


def network(net: nn.Module, class_name: str, kwargs: dict[str, Any], augment: bool = False) -> Persistent:
    """Our network under NVIDIA's class name, with its weights under the same names."""
    inner = Persistent(class_name, kwargs)
    for name, child in net.named_children():
        inner.add_module(name, child)
    if augment:
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.ones(8, 9))
        inner.add_module("map_augment", layer)
    return inner


def write(path: Path, net: nn.Module, class_name: str = "EDMPrecond", network_class: str = "SongUNet",
          kwargs: dict[str, Any] | None = None, augment: bool = False, **attributes: Any) -> Path:
    """A file like those published: {"ema": preconditioning around the network, loss_fn, augment_pipe, dataset_kwargs}."""
    outer = Persistent(class_name, **attributes)
    outer.add_module("unet" if class_name == "Precond" else "model", network(net, network_class, kwargs or {}, augment))
    loss = Persistent("EDMLoss", P_mean=-1.2, P_std=1.2)
    path.write_bytes(dumps({"ema": outer, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "x.zip"}}))
    return path


def expect_refusal(path, content: bytes | None = None) -> str:
    """Expect that reading a file, with this content if any is given, ends in one line; give the line."""
    import pytest  # here, because tools write pickles too, and for other versions of the package

    from pidistill.core.errors import PidistillError
    from pidistill.files.edm_pickle import read_edm_pickle

    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PidistillError) as error:
        read_edm_pickle(path)
    message = str(error.value)
    assert "\n" not in message and message.isprintable() and len(message) < 400
    return message


class Call:
    """An object that a pickle makes by a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def assemble(*pieces) -> bytes:
    """Assemble a pickle of protocol 4 from instructions: bytes as they are, text as a short string."""
    text = lambda piece: b"\x8c" + bytes([len(piece)]) + piece.encode()
    return b"\x80\x04" + b"".join(piece if isinstance(piece, bytes) else text(piece) for piece in pieces) + b"."


def write_storage(numel: int, data: bytes, claimed: int | None = None) -> bytes:
    """Write a FloatStorage as torch.save does.

    numel: the number of elements that its description names.
    data: its bytes.
    claimed: the number of elements before the bytes; numel if it is None.
    """
    file = BytesIO()
    torch.save(torch.zeros(1).storage(), file, _use_new_zipfile_serialization=False)
    head = file.getvalue()[:-12]
    at = head.rindex(b"K\x01N")  # numel = 1, view metadata None
    big = lambda n: b"\x8a\x08" + struct.pack("<q", n)
    return head[:at] + big(numel) + head[at + 2:] + struct.pack("<q", numel if claimed is None else claimed) + data


def write_network(stored: bytes, offset=0, size=(1,), stride=(1,)) -> bytes:
    """Write a network whose one weight is a call of _rebuild_tensor_v2.

    stored: the storage, from write_storage.
    offset, size, stride: where in it the weight lies.
    """
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
