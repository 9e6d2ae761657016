"""Raw networks F(x, c_noise, labels) are built here from their descriptions, as configurations and folders hold them.

A description is {"name": a file of this folder, options of its class}. A network of the user's own is called
`python:MODULE:FACTORY`, or `object:CLASS` where it has no name to be made by. No file decides what runs: such a network is
made only where the user names it (`build_net(..., own=True)`), or hands it over (`rebuild_net(..., net=...)`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from pidistill.core import processes
from pidistill.core.errors import PidistillError, words_of
from pidistill.core.registry import build, find_member, import_from_python, list_members
from pidistill.core.tensors import copy_module, find_device
from pidistill.files.weights import ANY, Allowance, explain_misfit

PYTHON, OBJECT = "python:", "object:"
Own = nn.Module | Callable[..., nn.Module] | str | dict[str, Any]  # what a user hands over, or names, as a network


def build_net(spec: dict[str, Any], shape: Sequence[int], num_classes: int, elements: int = ANY,
              where: Any = "", own: bool = False) -> nn.Module:
    """Build a network from its description. Raises PidistillError in one line.

    spec: {"name": a file of this folder, options of its class}.
    shape: of an image, (C, H, W).
    num_classes: of labels; 0 for an unconditional network.
    elements: numbers that its weights may have at most.
    where: the file with the description, for messages.
    own: the description is the user's word, and no file's, so that `python:MODULE:FACTORY` is imported.
    """
    options = dict(spec)
    name = options.pop("name")
    if "num_classes" in options:
        raise PidistillError(f"nets/{name}: num_classes comes from the teacher or the data; leave it out")
    if is_own(spec):
        if not own or not name.startswith(PYTHON):
            raise refuse_own(spec, where or "the network")
        make = import_from_python(name.removeprefix(PYTHON), "network", "FACTORY")
        with Allowance(elements, where or name):
            return call_factory(make, name, shape, num_classes, options)
    try:
        with Allowance(elements, where or f"nets/{name}"):
            return build("nets", name, shape, num_classes=num_classes, **options)
    except (RuntimeError, ValueError, ArithmeticError) as error:  # impossible sizes, such as width=-3
        raise PidistillError(f"nets/{name} cannot be built with {options}: {error}") from None


def rebuild_net(spec: dict[str, Any], shape: Sequence[int], num_classes: int, elements: int = ANY, where: Any = "",
                net: Own | None = None, how: str = "net={}") -> nn.Module:
    """Build the network that a file describes, or take the one that the user gives for it. Raises PidistillError.

    net: a network, of which a copy is taken; a factory; or `python:MODULE:FACTORY`, which is imported. A factory is called
        with the options of the description, and those of the user's word before them.
    how: the user names it where it is missing, with {} in the place of its name, for errors.
    Other parameters: `build_net`.
    """
    if net is None and is_own(spec):
        raise refuse_own(spec, where, how)
    if net is None:
        return build_net(spec, shape, num_classes, elements, where)
    if isinstance(net, nn.Module):
        return copy_own(net, where)
    options = {key: value for key, value in spec.items() if key != "name"} if is_own(spec) else {}
    if isinstance(net, str | dict):
        named = describe_net(net)
        if not is_own(named) or named["name"].startswith(OBJECT):
            raise PidistillError(f"{where}: a network of one's own is a module, a factory or python:MODULE:FACTORY, "
                                 f"got {str(net)[:80]}")
        return build_net(options | named, shape, num_classes, elements if options else ANY, where, own=True)
    if not callable(net):
        raise PidistillError(f"{where}: net must be a module, a factory or python:MODULE:FACTORY, got {type(net).__name__}")
    with Allowance(elements if options else ANY, where):
        return call_factory(net, getattr(net, "__name__", "net"), shape, num_classes, options)


def extend_net(network: nn.Module, spec: dict[str, Any], extension: dict[str, Any], shape: Sequence[int],
               num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network anew with more options, such as a second time, and give it the weights that it had.

    The new weights are those that the options bring, and no others; they begin so that the network computes what it did
    (`parts.times`). Gives the network, and its description.

    network: has the weights; it stays as it is. spec: its description.
    extension: the options, such as {"times": 2} or {"temporal": 4}.
    shape, num_classes: as `build_net` takes them.

    Raises PidistillError for a network without such options, and for one whose weights are not those of its description.
    """
    name, network = str(spec["name"]), unwrap(network)
    takers = [member for member in list_members("nets")
              if extension.keys() <= inspect.signature(find_member("nets", member)).parameters.keys()]
    if name not in takers:
        raise PidistillError(f"the network {name} has no option {' and '.join(extension)}; networks that have: "
                             f"{', '.join(takers) or 'none'}")
    with torch.device("meta"):
        former = build_net(spec, shape, num_classes).state_dict()
    extended = build_net(spec | extension, shape, num_classes)
    weights, state = network.state_dict(), extended.state_dict()
    if words := explain_misfit({key: value for key, value in state.items() if key in former}, weights):
        raise PidistillError(f"the network {name} cannot be extended by {' and '.join(extension)}: {words}")
    extended.load_state_dict(state | weights)
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    return extended.to(find_device(network), dtype).train(network.training), spec | extension


def call_factory(make: Callable[..., Any], name: str, shape: Sequence[int], num_classes: int,
                 options: dict[str, Any]) -> nn.Module:
    """Call a user's factory for a network: with options, and with `shape` and `num_classes` if these are parameters of it.

    name: of the factory, for errors. Raises PidistillError, also for what the factory itself raises.
    """
    try:
        parameters = inspect.signature(make).parameters
        known = {"shape": tuple(shape), "num_classes": num_classes}
        network = make(**{key: value for key, value in known.items() if key in parameters} | options)
    except PidistillError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise PidistillError(f"{name} makes no network: {type(error).__name__}: {words_of(error)}") from error
    if not isinstance(network, nn.Module):
        raise PidistillError(f"{name} must make a torch.nn.Module, it made a {type(network).__name__}")
    check_own(unwrap(network), name)
    return unwrap(network)  # as `copy_own` does: weights are saved by their names in the network itself


def unwrap(network: nn.Module) -> nn.Module:
    """Take a network out of what compiles it, or wraps it for several processes."""
    compiled = getattr(network, "_orig_mod", None)  # torch.compile's name
    if isinstance(compiled, nn.Module):
        return unwrap(compiled)
    return unwrap(network.module) if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel) else network


def copy_own(network: nn.Module, where: Any) -> nn.Module:
    """Copy a user's network. Raises PidistillError for one that cannot be copied."""
    check_own(unwrap(network), where)
    try:
        return copy_module(unwrap(network))
    except Exception as error:  # weights that are computed, such as weight_norm's, and what else has no copy
        raise PidistillError(f"{where}: the network {type(network).__name__} cannot be copied ({type(error).__name__}: "
                             f"{words_of(error)})") from None


def check_own(network: nn.Module, where: Any) -> None:
    """Refuse a user's network that cannot be trained as it is, and say which of its weights nobody knows of.

    Raises PidistillError for TorchScript's, whose dropout stays as it was, and for layers without weights as yet.
    """
    name = type(network).__name__
    if isinstance(network, torch.jit.ScriptModule):
        raise PidistillError(f"{where}: {getattr(network, 'original_name', name)} is TorchScript's, which may teach, but is "
                             "not trained; give the torch.nn.Module that it was made of")
    check_initialised(network, where)
    known = {id(part) for part in (*network.parameters(), *network.buffers(), *network.modules())}
    lists = {f"{owner}.{key}".strip(".") for owner, module in network.named_modules() for key, value in vars(module).items()
             if not key.startswith("_") and isinstance(value, list | tuple | dict) and _hides(value, known)}
    if lists:
        processes.say(f"warning: {where}: the network {name} has weights in plain lists or dictionaries "
                      f"({', '.join(sorted(lists)[:3])}): they are neither trained nor saved; nn.ModuleList, ModuleDict or "
                      "ParameterList makes them the network's")


def _hides(value: Any, known: Collection[int], depth: int = 3) -> bool:
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and any(_hides(item, known, depth - 1) for item in inner)
    return id(value) not in known and (isinstance(value, nn.Parameter) or (
        isinstance(value, nn.Module) and any(id(p) not in known for p in value.parameters())))


def check_initialised(network: nn.Module, where: Any) -> None:
    """Refuse a network whose lazy layers have no weights as yet. Raises PidistillError."""
    if lazy := [name for name, p in network.named_parameters() if isinstance(p, UninitializedParameter)]:
        raise PidistillError(f"{where}: the network {type(network).__name__} has lazy layers without weights as yet "
                             f"({lazy[0]}); call it once, before it is handed over")


def describe_net(spec: str | dict[str, Any] | None, network: nn.Module | None = None) -> dict[str, Any]:
    """Give the description of a network as a mapping; of one without a description, the name of its class."""
    if spec is None:
        return {"name": f"{OBJECT}{'none' if network is None else type(unwrap(network)).__name__}"}
    return {"name": spec} if isinstance(spec, str) else dict(spec)


def is_own(spec: Any) -> bool:
    """Tell whether a description, as a file may hold it, is of a network of a user's own."""
    return isinstance(spec, dict) and str(spec.get("name")).startswith((PYTHON, OBJECT))


def refuse_own(spec: dict[str, Any], where: Any, how: str = "net={}") -> PidistillError:
    """Make the error that refuses to make a network of a user's own because a file names it. Parameters: `rebuild_net`."""
    name = str(spec["name"])[:80]
    known = name if name.startswith(PYTHON) else "python:MODULE:FACTORY"
    return PidistillError(f"{where} has a network of its maker's own, {name}, which is code, and no file decides what runs; "
                          f"if you trust it, name it: {how.format(known)}")
