"""Weights are read from files and loaded into networks, strictly. No pickle is executed, and none is written."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pidistill.core.errors import PidistillError, words_of
from pidistill.core.tensors import find_device, find_overlaps, locate
from pidistill.files.archives import catch_damage
from pidistill.files.reading import open_file
from pidistill.files.safetensors_header import read_header

TENSORS, ANY = 10_000, 10**12  # of a network; elements where no weights are read
SAVEABLE = {f"torch.{name}" for name in (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "bool",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")}
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, once its header is checked. Raises PidistillError in one line.

    A tensor that has several names has all of them again, as the metadata say (`save_tensors`, or `save_model` of the
    library).
    """
    others = read_header(path).get("__metadata__")
    try:
        # Bytes that are no UTF-8, in which safetensors names files.
        tensors = load(path.read_bytes()) if re.search(r"[\ud800-\udfff]", str(path)) else load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that torch lacks
        raise PidistillError(f"cannot read {path}: truncated or not a safetensors file ({error})") from None
    names = {name: first for name, first in others.items() if name != "format"} if isinstance(others, dict) else {}
    return tensors | {name: tensors[first] for name, first in names.items() if first in tensors and name not in tensors}


def read_contents(path: Path) -> Any:
    """Read all that a file of weights holds: .safetensors, or what torch.save wrote (.pt, .pth, .ckpt).

    Only tensors, plain containers and argparse's Namespace (of DiT and others, a dictionary by another name) are read; no
    code of a file is run. Raises PidistillError in one line.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth", ".ckpt"):
        raise PidistillError(f"{path}: weights are read from .safetensors, .pt, .pth or .ckpt, got "
                             f"{path.suffix or 'a name without an ending'}")
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    open_file(path).close()  # or say what it is
    check_packing(path)
    try:
        # Warnings are those of odd files, which end in an error anyway.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can end in almost any of them
        stranger = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a {stranger[1][:80]}, whose code is not run" if stranger else type(error).__name__
        raise PidistillError(f"cannot read {path}: damaged, or more than a state dictionary of tensors ({what}); save "
                             "state_dict() alone, where you trust the file") from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary alone, or under the key `ema`, `state_dict` or `model`, where no network is known that it is
    to fit; else see `find_weights`. Raises PidistillError in one line.
    """
    state = read_contents(path)
    if isinstance(state, dict):
        state = next((state[key] for key in ("ema", "state_dict", "model") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state:
        raise PidistillError(f"{path} {describe_nothing(state)}")
    for name, value in state.items():
        counter = str(name).endswith(".num_batches_tracked")  # of batch normalisation
        if not isinstance(name, str) or not name.isprintable() or not is_weight(value, counter):
            raise PidistillError(f"{path}: {describe_no_weight(name, value)}")
    return state


def is_weight(value: Any, integer: bool = False) -> bool:
    """Say whether a value is a tensor in memory, no element of which stands for many. integer: any numbers will do."""
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu" \
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes() \
        and (integer or value.is_floating_point())


def describe_no_weight(name: Any, value: Any) -> str:
    """Say that a value of a file is no weight."""
    return (f"the entry {str(name)[:60]!r} is no weight ({getattr(value, 'dtype', type(value).__name__)}); save "
            "state_dict() alone")


def describe_nothing(contents: Any) -> str:
    """Say that a file holds no weights."""
    held = ", ".join(str(key)[:40] for key in list(contents)[:3]) or "nothing" if isinstance(contents, dict) else ""
    return f"holds no state dictionary of weights, but {held or f'a {type(contents).__name__}'}"


def check_packing(path: Path) -> None:
    """Refuse what torch.save never writes and torch.load inflates: members of a ZIP that are larger than the file."""
    if zipfile.is_zipfile(path):
        with catch_damage(str(path)), zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise PidistillError(f"cannot read {path}: it inflates, which what torch.save writes does not")


class Allowance(TorchFunctionMode):
    """A context in which networks can have so many elements at most: more are refused before they are allocated.

    A configuration can ask for any size in a few bytes; the weights beside it must then have as many.

    elements: how many elements all networks that are built inside may have.
    where: the file or folder that describes them, for errors.
    """

    def __init__(self, elements: int, where: Any):
        super().__init__()
        self.remaining, self.tensors, self.where = elements, TENSORS, where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES:
            size = (kwargs or {}).get("size", args)
            numbers = size[0] if size and isinstance(size[0], list | tuple | torch.Size) else size
            self.remaining -= math.prod(n for n in numbers if isinstance(n, int))
            self.tensors -= 1
        elif func is torch.arange:
            self.remaining -= int(max(map(abs, args), default=0))
        if min(self.remaining, self.tensors) < 0:
            raise PidistillError(f"{self.where}: the network that it describes is too large for the weights beside it")
        return func(*args, **(kwargs or {}))


def count_allowed_elements(*files: Path) -> int:
    """Count the elements that a network with weights in these files may have.

    A byte holds one element at most; some of a network's elements are not stored.
    """
    return 10**7 + 2 * sum(path.stat().st_size for path in files if path.is_file())


def load_weights(module: nn.Module, tensors: dict[str, Tensor], where: Path, net: str = "its config.json") -> None:
    """Load weights into a network, strictly. Raises PidistillError, in one line, for a missing, unknown or misshapen one.

    A tensor that has several names in the network (tied weights) may have one of them alone in the file; if it has several,
    they must agree.

    module: the network.
    tensors: its weights, by name.
    where: the file that they are from, for errors.
    net: whose network it is, for errors.
    """
    make_room(module, tensors)
    expected = module.state_dict()
    values = tensors | find_tied(expected, tensors)
    if words := explain_misfit(expected, values):
        raise PidistillError(f"{where} does not fit the network of {net}: {words}")
    try:
        module.load_state_dict(values)
    except (RuntimeError, TypeError, ValueError) as error:  # what a network of one's own has to say
        raise PidistillError(f"{where} does not fit the network of {net}: {words_of(error)}") from None
    shared = [pair for names in group_tied(expected).values() for pair in pairwise(names)]
    for first, name in shared + find_overlaps(expected):
        if any(not torch.equal(expected[key], values[key].to(expected[key])) for key in (first, name)):
            raise PidistillError(f"{where} does not fit the network of {net}: {first} and {name} share their memory "
                                 "there, and do not agree in the file")


def explain_misfit(expected: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> str:
    """Say why weights do not fit a network by names and shapes; empty if they do.

    expected: the network's weights, by name. values: the file's.
    """
    if expected.keys() != values.keys():
        return f"weights {compare_names(expected, values)}"
    return next((f"{name} has shape {tuple(values[name].shape)}, the network {tuple(value.shape)}"
                 for name, value in expected.items() if value.shape != values[name].shape), "")


def make_room(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make room in a network for buffers that could not be copied into.

    A network may register a buffer as None, and make it when it is first called; PyTorch's own modules do so only where
    there is to be none (batch normalisation without statistics). Another may be one element that stands for many.
    """
    for path, owner in module.named_modules():
        for name, value in owner._buffers.items():
            given = tensors.get(f"{path}.{name}" if path else name)
            if given is None:
                continue
            if value is None and not type(owner).__module__.startswith("torch."):
                owner._buffers[name] = torch.zeros_like(given, device=find_device(module))
            elif value is not None and 0 in value.stride():
                owner._buffers[name] = value.clone()


def group_tied(tensors: Mapping[str, Tensor]) -> dict[object, list[str]]:
    """Group the names of tensors by the place in memory that they stand for."""
    places: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        if place := locate(tensor):
            places.setdefault(place, []).append(name)
    return places


def find_tied(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the weights that a file lacks under one of their names in a network, and has under another.

    expected: the network's weights, by name. tensors: the file's.
    """
    return {name: tensors[known] for names in group_tied(expected).values() for known in names[:] if known in tensors
            for name in names if name not in tensors}


def compare_names(expected: Collection[str], names: Collection[str]) -> str:
    """Say how many names a network and a file do not have in common, with three of each side.

    expected: of the network. names: of the file.
    """
    missing, surplus = sorted({*expected} - {*names}), sorted({*names} - {*expected})
    show = lambda names: ", ".join(name[:60] for name in names[:3])
    if not missing:
        return f"{len(surplus)} unknown, first {show(surplus)} (the network has {show(sorted(expected))})"
    found = f"{len(surplus)} unknown, first {show(surplus)}" if surplus else f"the file has {show(sorted(names)) or 'none'}"
    return f"{len(missing)} missing, first {show(missing)}; {found}"


def check_saveable(module: nn.Module, what: str) -> None:
    """Refuse a network whose state no file of weights can hold, before it is trained. Raises PidistillError.

    what: which network it is, for the error.
    """
    for name, value in module.state_dict().items():
        kind = str(value.layout if value.layout is not torch.strided else value.dtype) if isinstance(value, Tensor) \
            else type(value).__name__
        if kind not in SAVEABLE:
            raise PidistillError(f"{what} cannot be saved: its {name} is {kind.removeprefix('torch.')}, which no file of "
                                 "weights holds; make it a plain tensor, or keep it out of the state (a buffer with "
                                 "persistent=False)")
