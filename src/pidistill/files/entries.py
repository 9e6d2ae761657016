"""A checkpoint is read as entries: every place in it at which a network's weights may stand, under whatever names.

All that lies in its dictionaries and lists is named by its keys, joined by dots, so that {"ema": {"module.w": x}} and
{"ema.module.w": x} are the same. What stands before a network's own names is an entry's label, here `ema.module`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pidistill.core.errors import PidistillError

# Of a file: values, dictionaries in each other, letters of a name, entries.
MOST_VALUES, NESTING, LENGTH, ENTRIES = 200_000, 32, 1000, 100
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module", "_forward_module"}
COUNTERS = {"n_averaged", "initted", "step", "num_updates", "decay", "iteration", "epoch", "global_step"}  # beside weights
AVERAGE, WEIGHTS, OTHER = 0, 1, 2  # ranks, the best first

# Words of labels. A word that is in none of these sets makes an entry OTHER.
AVERAGES = {"ema", "emas", "ewa", "swa", "avg", "average", "averages", "averaged", "averaging", "shadow", "polyak"}
RAW = {"online", "raw", "current", "non", "no", "not", "without", "before", "unaveraged"}  # such as non_ema
PLAIN = {"model", "models", "net", "nets", "network", "networks", "state", "dict", "sd", "weights", "weight", "params",
         "param", "parameters", "unet", "denoiser", "diffusion", "generator", "g", "module", "modules", "orig", "mod",
         "fsdp", "fpw", "wrapped", "forward", "checkpoint", "ckpt", "backbone", "features",
         "target", "teacher", "momentum"}  # of these three nobody knows: {"model", "target"} is a choice for the user
# Of the shapes of weights, and none: an optimiser's moments, gradients, and copies put aside while an average is in use.
FORBIDDEN = {"opt", "optim", "optims", "optimizer", "optimizers", "optimiser", "optimisers", "adam", "adamw", "sgd", "sched",
             "scheduler", "schedulers", "scaler", "collected", "backup", "grad", "grads", "gradient", "gradients"}
MOMENTS = {"momentum", "momentum_buffer", "momentum_buffers", "mu", "nu", "square_avg", "square_avgs"}


class Leaf(NamedTuple):
    """A value of a file that is no dictionary: a tensor, a list of tensors, or a number and the like.

    container: the name of the dictionary that it lies in.
    sound: whether its name is one that a weight may have, and no other value has it.
    """

    value: Any
    container: str
    sound: bool


@dataclass(frozen=True, eq=False)
class Entry:
    """A place in a file at which weights may stand.

    label: what stands before the network's names. rank: AVERAGE, WEIGHTS or OTHER.
    values: by the network's names, and by their own those that the network has not; all in the order of the file.
    names: of the values in the file.
    items: in place of values those of a list, in the order of parameters, as averages are that know no names.
    """

    label: str
    rank: int
    values: dict[str, Any]
    names: Collection[str]
    items: Sequence[Tensor] = ()


def name_values(contents: Any, where: Path) -> dict[str, Leaf]:
    """Name all values in dictionaries and lists, optimisers' left out. Raises PidistillError where there are too many."""
    leaves: dict[str, Leaf] = {}
    stack, remaining = [("", contents, 0)] if isinstance(contents, Mapping | list | tuple) else [], MOST_VALUES
    while stack:
        path, container, depth = stack.pop()
        mapping = isinstance(container, Mapping)
        remaining -= len(container) if mapping else sum(isinstance(x, Tensor | Mapping | list | tuple) for x in container)
        if remaining < 0 or depth > NESTING or len(path) > LENGTH:
            raise PidistillError(f"{where} holds more than {MOST_VALUES:,} values, or dictionaries deeper in each other "
                                 f"than {NESTING}, or longer names than networks: save state_dict() alone")
        for key, value in container.items() if isinstance(container, Mapping) else enumerate(container):
            text = str(key) if isinstance(key, str | int) and not isinstance(key, bool) else type(key).__name__
            name = f"{path}.{text[:LENGTH]}" if path else text[:LENGTH]
            if isinstance(value, Mapping | list | tuple):
                if is_list(value):
                    leaves[name] = Leaf(value, path, True)
                elif not is_forbidden(text):
                    stack.append((name, value, depth + 1))
            elif mapping:
                sound = isinstance(key, str) and text.isprintable() and len(text) <= LENGTH and name not in leaves
                leaves[name] = Leaf(value, path, sound)
    return leaves


def is_list(value: Any) -> bool:
    """Say whether a value is a list of tensors."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Tensor) for item in value)


def split_words(segment: str) -> list[str]:
    """Split a part of a name into words of small letters: `netEMA_0` is net and ema."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", segment)]


def is_forbidden(segment: str) -> bool:
    """Say whether a part of a name is that of an optimiser's state, or of another copy that is never to be read."""
    words = {*split_words(segment)}
    return bool(words & FORBIDDEN) or {"exp", "avg"} <= words or segment.lower() in MOMENTS


@lru_cache(10_000)
def rank_label(label: str) -> int | None:
    """Rank an entry by the words of its label; the innermost that says something decides. None: never to be read."""
    segments = label.split(".")
    if any(map(is_forbidden, segments)):
        return None
    for segment in reversed(segments):
        words = {*split_words(segment)}
        if words & RAW:
            return OTHER
        if any(word in AVERAGES or (word[:3] == "ema" and word[3:] in PLAIN) or (word[-3:] == "ema" and word[:-3] in PLAIN)
               for word in words):
            return AVERAGE
    return WEIGHTS if {*split_words(label)} <= PLAIN else OTHER


def find_prefixes(leaves: Mapping[str, Leaf], expected: Collection[str]) -> dict[str, dict[str, str]]:
    """Find what stands before a network's names in a file: {prefix: {the network's name: the file's}}.

    Wrappers' names are left out wherever they stand. So are the dots, as by LitEma of latent diffusion.
    expected: the network's names.
    """
    wrappers = WRAPPERS - {segment for name in expected for segment in name.split(".")}
    depth = max((name.count(".") + 1 for name in expected), default=0)
    tails: dict[str, str] = {}  # ends of names -> the network's name; "" where dots are out and it might be either of two
    for name in expected:
        tails[name.replace(".", "")] = name if name.replace(".", "") not in tails else ""
    tails |= {name: name for name in expected}
    lengths = {len(tail) for tail in tails}
    found: dict[str, dict[str, str]] = {}
    clashes = set()
    for full in leaves:
        segments, rest, matches = full.split("."), "", {}
        for k in range(len(segments) - 1, max(-1, len(segments) - 1 - 2 * depth - len(wrappers)), -1):
            if segments[k] not in wrappers:
                rest = f"{segments[k]}.{rest}" if rest else segments[k]
                if rest in expected:
                    matches["".join(f"{segment}." for segment in segments[:k])] = rest
        if not matches:  # the prefix ends in no dot: of `model_ema.netfirstweight`, `ema/first.weight`
            matches = {full[:-length]: tails[full[-length:]] for length in lengths if tails.get(full[-length:])}
        for prefix, name in matches.items():
            if found.setdefault(prefix, {}).setdefault(name, full) != full:
                clashes.add(prefix)
    return {prefix: names for prefix, names in found.items() if prefix not in clashes}


def find_entries(leaves: Mapping[str, Leaf], expected: Collection[str], where: Path) -> list[Entry]:
    """Find the entries of a file, by label: those with half of a network's names or more (without one, that with most,
    if a tenth), dictionaries and averages with other names, and lists.

    expected: the network's names. where: the file, for errors.
    """
    found = find_prefixes(leaves, expected)
    chief = sorted(prefix for prefix, names in found.items() if 2 * len(names) >= len(expected))
    if len(chief) > ENTRIES:
        raise PidistillError(f"{where} has more than {ENTRIES} entries that may be weights: save state_dict() alone")
    best = min(found, key=lambda prefix: (-len(found[prefix]), prefix), default="")
    ordered, position = sorted(leaves), {full: k for k, full in enumerate(leaves)}
    entries: list[Entry] = []
    for prefix in chief or [best] * (10 * len(found.get(best, ())) >= len(expected) > 0):
        own, inside = {full: name for name, full in found[prefix].items()}, select_range(ordered, prefix)
        homes = {leaves[full].container for full in own}
        others = tuple(other for other in chief if other != prefix and other.startswith(prefix))
        for full in inside:
            leaf = leaves[full]
            if leaf.container in homes and full not in own and not full.startswith(others) and (
                    not leaf.sound or isinstance(leaf.value, Tensor)) and not is_counter(full, leaf):
                own[full] = full[len(prefix):]
        # In the file's order, which is that of the parameters of whoever wrote it.
        values = {own[full]: read_value(leaves[full]) for full in sorted(own, key=position.__getitem__)}
        entries += make_entry(leaves, prefix.rstrip("._/:"), values, inside)
    used = {full for entry in entries for full in entry.names}
    homes = {leaves[full].container for full in used}
    strangers: dict[str, list[str]] = {}
    for full, leaf in leaves.items():
        if is_list(leaf.value) and rank_label(full) == AVERAGE:
            entries += make_entry(leaves, full, {}, [full], leaf.value)
        elif isinstance(leaf.value, Tensor) and full not in used and not is_counter(full, leaf):
            label = find_average(full)
            if label or leaf.container not in homes:
                strangers.setdefault(label or leaf.container, []).append(full)
    for label, fulls in strangers.items():
        start = len(label) + 1 if label else 0
        if any(entry.label.startswith(f"{label}."[:start]) for entry in entries):
            continue  # what stands around an entry, such as a diffusion's betas
        entries += make_entry(leaves, label, {full[start:]: read_value(leaves[full]) for full in fulls}, fulls)
    return sorted(entries, key=lambda entry: (entry.label, len(entry.items)))


def list_states(leaves: Mapping[str, Leaf]) -> dict[str, dict[str, Tensor]]:
    """List the tensors of a file, by the dictionary or the list that they lie in, without a network that they are to fit."""
    states: dict[str, dict[str, Tensor]] = {}
    for full, leaf in leaves.items():
        if is_forbidden(full.rpartition(".")[2]) or is_counter(full, leaf):
            continue
        if is_list(leaf.value):
            states[full] = {str(k): value for k, value in enumerate(leaf.value)}
        elif isinstance(leaf.value, Tensor):
            states.setdefault(leaf.container, {})[full[len(leaf.container) + bool(leaf.container):]] = leaf.value
    return states


def find_average(full: str) -> str:
    """Find the shortest label of an average in front of a name; empty if there is none."""
    segments = full.split(".")[:-1]
    return next((".".join(segments[:k + 1]) for k, segment in enumerate(segments) if rank_label(segment) == AVERAGE), "")


def is_named(label: str, name: str | None) -> bool:
    """Say whether a label is what a user names, or begins with it; `.` is the empty one, None any."""
    return name is None or (label or ".") == name or label.startswith(f"{name}.")


def make_entry(leaves: Mapping[str, Leaf], label: str, values: dict[str, Any], names: list[str],
               items: Sequence[Tensor] = ()) -> Iterator[Entry]:
    """Yield the entry, unless it is never to be read. What `torch.optim.swa_utils` averaged is known by its counter."""
    rank, segments = rank_label(label), label.split(".")
    averaged = any(segment == "module" and ".".join([*segments[:k], "n_averaged"]) in leaves
                   for k, segment in enumerate(segments))
    if rank is not None:
        yield Entry(label, AVERAGE if averaged else rank, values, names, items)


def select_range(ordered: list[str], prefix: str) -> list[str]:
    """Select the names that begin with a prefix out of an ordered list."""
    return ordered[bisect_left(ordered, prefix):bisect_left(ordered, f"{prefix}\U0010ffff")]


def is_counter(full: str, leaf: Leaf) -> bool:
    """Say whether a value is the count or the rate of an average, which lies beside weights and is none."""
    return full.rpartition(".")[2] in COUNTERS and (not isinstance(leaf.value, Tensor) or leaf.value.numel() == 1)


def read_value(leaf: Leaf) -> Any:
    """Give a leaf's value; of one with an unusual name the leaf, which is no weight."""
    return leaf.value if leaf.sound else leaf
