"""NVIDIA's pickles of EDM and EDM2 networks are read without unpickling: nothing in the file is imported or executed.

The networks in them are objects of NVIDIA's `torch_utils.persistence`, which reduce to a dictionary of class name, source
code and state; the source is never looked at. All else that the file holds (loss, augmentation) is read past. torch is
imported only for the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidistill.core.errors import PidistillError
from pidistill.files.pickle_machine import (
    BoundedReader,
    Machine,
    MalformedPickle,
    Record,
    StoredTensor,
    expect_mapping,
    expect_type,
    shorten,
)
from pidistill.files.reading import open_file, sha256

if TYPE_CHECKING:
    from torch import Tensor

# What networks stay far below, and hostile files may not pass: a few bytes can name one object a billion times.
NAMES, VALUES_SHOWN = 50_000, 50_000
MODULE_DEPTH = 60  # of modules inside modules


@dataclass(frozen=True)
class EDMPickle:
    """A network out of a pickle.

    class_name: the class of its preconditioning, such as EDMPrecond; EDM2's is Precond.
    attributes: the preconditioning's plain attributes (sigma_data, img_resolution, ...).
    network: the raw network's class and constructor arguments, {"class_name", "args", "kwargs"}.
    stored: weights and buffers, by PyTorch's names for them.
    keys: the names of all that the file holds.
    encoder: the class that made the network's data of images, in EDM2's files.
    entries: the names of all networks in the file, that of this one first.
    """

    class_name: str
    attributes: dict[str, Any]
    network: dict[str, Any]
    stored: dict[str, StoredTensor]
    keys: tuple[str, ...]
    encoder: str | None = None
    entries: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers as tensors, by PyTorch's names for them."""
        return {name: stored.load() for name, stored in self.stored.items()}


def read_edm_pickle(path: Path) -> EDMPickle:
    """Read the network under `ema` of a pickle, or its only one, or one that is the pickle. Raises PidistillError."""
    try:
        with open_file(path) as file:
            if file.read(2) not in (b"\x80\x04", b"\x80\x03", b"\x80\x05", b"\x80\x02"):
                raise MalformedPickle("it is no pickle")
            file.seek(0)
            root = Machine(BoundedReader(file, path.stat().st_size)).run()
        keys = tuple(map(str, root)) if isinstance(root, dict) else ()
        entries = find_networks(root) if isinstance(root, dict) else []
        if len(entries) > 1 and entries[0] != "ema":
            raise MalformedPickle(f"it holds several networks, {shorten(tuple(entries))}, and none of them under `ema`")
        net = root.get(entries[0] if entries else "ema") if isinstance(root, dict) else root
        if not isinstance(net, Record) or "_modules" not in net.state:
            raise MalformedPickle(f"there is no network under `ema`{f'; it holds {shorten(keys)}' if keys else ''}")
        network = describe_network(net)
        budget = [VALUES_SHOWN]
        attributes = {key: value for key, value in net.state.items()
                      if not key.startswith("_") and key != "training" and is_plain(value, budget)}
        encoder = root.get("encoder") if isinstance(root, dict) else None
        return EDMPickle(net.name, attributes, network, dict(walk_tensors(net)), keys,
                         encoder.name if isinstance(encoder, Record) else None, tuple(entries))
    except PidistillError:
        raise
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except OSError as error:
        raise PidistillError(f"cannot read {path}: {error.strerror or error}") from None
    except MalformedPickle as error:
        raise PidistillError(f"cannot read {path}: {error}") from None
    except Exception as error:  # damaged bytes can end in almost any of them, here or in pickletools
        raise PidistillError(f"cannot read {path}: damaged, or no pickle of an EDM network ({type(error).__name__})") \
            from None


def find_networks(root: dict[Any, Any]) -> list[str]:
    """Find the names under which a pickle has preconditionings around networks, `ema` first."""
    found = [key for key, value in root.items() if isinstance(key, str) and isinstance(value, Record)
             and isinstance(modules := value.state.get("_modules"), dict) and ("model" in modules or "unet" in modules)]
    return sorted(found, key=lambda key: (key != "ema", key))


def describe_network(preconditioning: Record) -> dict[str, Any]:
    """Name the raw network inside a preconditioning, and the arguments that it was made with, if they are plain values."""
    modules = expect_mapping(preconditioning.state["_modules"])
    net = next((module for name, module in modules.items() if name in ("model", "unet")), None)
    if not isinstance(net, Record):
        raise MalformedPickle(f"{shorten(preconditioning.name)} holds no `model` or `unet`")
    args, kwargs = (net.state.get(key) for key in ("_init_args", "_init_kwargs"))
    return {"class_name": net.name, "args": args if args and is_plain(args, [VALUES_SHOWN]) else (),
            "kwargs": kwargs if kwargs and is_plain(expect_type(kwargs, dict), [VALUES_SHOWN]) else {}}


def describe_pickle(path: Path) -> dict[str, Any]:
    """Collect facts about a pickle, to be printed, without building its network."""
    file = read_edm_pickle(path)
    return {"model": str(path), "kind": f"EDM pickle ({file.class_name})", **file.attributes,
            "network": {"class": file.network["class_name"], **file.network["kwargs"]},
            "parameters": sum(math.prod(stored.size) for stored in file.stored.values()), "tensors": len(file.stored),
            "holds": ", ".join(file.keys), "encoder": file.encoder, "sha256": sha256(path)}


def walk_tensors(module: Record, prefix: str = "", path: tuple[int, ...] = (),
                 budget: list[int] | None = None) -> Iterator[tuple[str, StoredTensor]]:
    """Yield weights and buffers with the names that they have in PyTorch's state_dict().

    module: the module to begin with.
    prefix: the names of the modules around it, each with a dot behind it.
    path: the identities of the modules around it.
    budget: a list of one number, how many more names there may be.
    """
    budget = [NAMES] if budget is None else budget
    if id(module) in path or len(path) > MODULE_DEPTH:
        raise MalformedPickle("a module in it contains itself, or others too deep")
    budget[0] -= 1 + sum(len(expect_mapping(module.state.get(group, {})))
                         for group in ("_parameters", "_buffers", "_modules"))
    if budget[0] < 0 or len(prefix) > 10_000:
        raise MalformedPickle(f"it has more than {NAMES:,} names of weights and modules, or longer ones than networks")
    transient = module.state.get("_non_persistent_buffers_set", [])
    for group in ("_parameters", "_buffers"):
        for name, value in expect_mapping(module.state.get(group, {})).items():
            if value is not None and not (group == "_buffers" and name in expect_type(transient, list)):
                yield f"{prefix}{expect_name(name)}", expect_type(value, StoredTensor)
    for name, child in expect_mapping(module.state.get("_modules", {})).items():
        if child is not None:
            yield from walk_tensors(expect_type(child, Record), f"{prefix}{expect_name(name)}.", (*path, id(module)), budget)


def expect_name(name: Any) -> str:
    """Give a weight's name back, if it is printable text."""
    if not isinstance(name, str) or not name.isprintable():
        raise MalformedPickle("a weight in it has an unusual name")
    return name


def is_plain(value: Any, budget: list[int], depth: int = 8) -> bool:
    """Say whether a value is a number, short text, or a list or dictionary of such.

    value: the value to look at.
    budget: a list of one number, how many more values may be looked at.
    depth: how many lists and dictionaries may lie in each other.
    """
    budget[0] -= 1
    if budget[0] < 0:
        raise MalformedPickle(f"it has attributes of more than {VALUES_SHOWN:,} values")
    if isinstance(value, (bool, float, type(None))):
        return True
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, str):
        return len(value) < 1000 and value.isprintable()
    if depth and isinstance(value, (list, tuple)):
        return all(is_plain(item, budget, depth - 1) for item in value)
    return bool(depth) and isinstance(value, dict) and all(is_plain(item, budget, depth - 1) for item in value.values())
