"""Weights are read from files and loaded into networks, strictly. No pickle is executed, and none is written."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pidistill.core.errors import PidistillError
from pidistill.files.archives import catch_damage
from pidistill.files.safetensors_header import read_header

TENSORS, ANY = 10_000, 10**12  # of a network; elements where no weights are read
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, once its header is checked. Raises PidistillError in one line."""
    read_header(path)
    try:
        if re.search(r"[\ud800-\udfff]", str(path)):  # bytes that are no UTF-8, in which safetensors names files
            return load(path.read_bytes())
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that torch lacks
        raise PidistillError(f"cannot read {path}: truncated or not a safetensors file ({error})") from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights by name from .safetensors, or from what torch.save wrote (.pt, .pth, .ckpt).

    The latter may hold them under the key `ema`, `state_dict` or `model`. Only tensors and plain containers are read.
    Raises PidistillError in one line.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth", ".ckpt"):
        raise PidistillError(f"{path}: weights are read from .safetensors, .pt, .pth or .ckpt, got "
                             f"{path.suffix or 'a name without an ending'}")
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    if path.suffix == ".safetensors":
        state: Any = read_tensors(path)
    else:
        check_packing(path)
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd files, which end in an error anyway
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or hostile file can end in almost any of them
            raise PidistillError(f"cannot read {path}: damaged, or more than a state dictionary of tensors "
                                 f"({type(error).__name__}); save state_dict() alone") from None
        for key in ("ema", "state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
                break
    if not isinstance(state, dict) or not state:
        raise PidistillError(f"{path} holds no state dictionary of weights, but "
                             f"{'nothing' if isinstance(state, dict) else f'a {type(state).__name__}'}")
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu" \
            and value.numel() * value.element_size() <= value.untyped_storage().nbytes()  # no element stands for many
        counter = str(name).endswith(".num_batches_tracked")  # of batch normalisation
        if not isinstance(name, str) or not name.isprintable() or not plain or not (value.is_floating_point() or counter):
            raise PidistillError(f"{path}: the entry {str(name)[:60]!r} is no weight "
                                 f"({getattr(value, 'dtype', type(value).__name__)}); save state_dict() alone")
    return state


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

    module: the network.
    tensors: its weights, by name.
    where: the file that they are from, for errors.
    net: whose network it is, for errors.
    """
    expected = module.state_dict()
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        what = f"{len(missing)} missing" if missing else f"{len(surplus)} unknown"
        raise PidistillError(f"{where} does not fit the network of {net}: weights {what}, "
                             f"first {(missing or surplus)[0]}")
    for name, value in expected.items():
        if value.shape != tensors[name].shape:
            raise PidistillError(f"{where}: {name} has shape {tuple(tensors[name].shape)}, the network {tuple(value.shape)}")
    module.load_state_dict(tensors)
