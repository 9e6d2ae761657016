"""Writes pickles of the structure of NVIDIA's, around our own networks: for tests alone, the package writes none."""

from __future__ import annotations

import pickle
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
