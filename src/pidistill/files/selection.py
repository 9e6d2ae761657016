"""Of all that a file holds, the weights are chosen that fit a network: an average before what was averaged.

What is chosen depends on names, shapes and values. Where two entries are as good as each other and differ, neither is
taken: the user names one, as `FILE,entry=NAME`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pidistill.core.console import console
from pidistill.core.errors import PidistillError, to_line
from pidistill.core.tensors import locate
from pidistill.files.entries import AVERAGE, Entry, Leaf, find_entries, is_counter, is_named, name_values
from pidistill.files.weights import (
    describe_no_weight,
    describe_nothing,
    explain_misfit,
    find_tied,
    group_tied,
    is_weight,
    load_weights,
    read_contents,
)

SHOWN = 6  # entries in a message


class Choice(NamedTuple):
    """Weights that were chosen. entry: their label in the file. sentences: what the user is to know of them."""

    tensors: dict[str, Tensor]
    entry: str
    sentences: list[str]


class Fit(NamedTuple):
    """An entry that fits a network, its weights by the network's names, and how it was made to fit."""

    entry: Entry
    tensors: dict[str, Tensor]
    how: str


class Misfit(Exception):
    """An entry does not fit; the message says why."""


def split_entry(text: str) -> tuple[Path, str | None]:
    """Split `FILE,entry=NAME`; None where no entry is named. Raises PidistillError for an empty name."""
    file, sign, entry = text.rpartition(",entry=")
    if not sign or Path(text).expanduser().exists():  # a comma is a letter of a file's name
        return Path(text).expanduser(), None
    if not file or not entry:
        raise PidistillError(f"an entry is named as FILE,entry=NAME, got {text}")
    return Path(file).expanduser(), entry


def load_chosen(module: nn.Module, path: Path, net: str, *, contents: Any = None, **options: Any) -> Choice:
    """Load the weights of a file that fit a network into it, and print which they are. Parameters as in `choose_weights`.

    contents: of the file, where it was read before.
    """
    choice = choose_weights(module, read_contents(path) if contents is None else contents, path, net, **options)
    load_weights(module, choice.tensors, path, net.removeprefix("the network of "))
    for sentence in choice.sentences:
        console.print(f"{path.name}: {sentence}", soft_wrap=True)
    return choice


def choose_weights(module: nn.Module, contents: Any, path: Path, net: str, *, entry: str | None = None,
                   own: Collection[str] = ("",), unused: Mapping[str, str] | None = None,
                   constants: Collection[str] = ()) -> Choice:
    """Choose the weights that fit a network. Raises PidistillError, in one line, where none do, or several as well.

    module: the network.
    contents: of the file. path: its name, for messages. net: what it is, for errors.
    entry: the label that the user names, or the beginning of one; `.` is that without a label.
    own: labels that need no word, where a file has nothing else.
    unused: beginnings of names that the network has not and needs not, with a sentence for each, or none.
    constants: last names of buffers that are the same in every such network.
    """
    leaves, unused = name_values(contents, path), unused or {}
    entries = find_entries(leaves, module.state_dict(), path)
    if not entries:
        raise PidistillError(f"{path} {describe_nothing(contents)}")
    looked = restrict(entries, entry, path)
    fits, misfits = fit_entries(module, entries, tuple(unused), constants)
    fits = [fit for fit in fits if fit.entry in looked]
    fits = [fit for fit in fits if fit.entry.label == entry] or fits
    if not fits:
        names = module.state_dict().keys()
        looked.sort(key=lambda e: (-len(names & e.values.keys()), e.rank))
        raise PidistillError(f"{path} does not fit {net}: {misfits[looked[0]]}" + (
            f"; looked at {list_labels(looked)}" if looked[0].label or len(looked) > 1 else ""))
    best = [fit for fit in fits if fit.entry.rank == min(fit.entry.rank for fit in fits)]
    chosen = best[0]
    if any(not are_equal(value, fit.tensors[name]) for fit in best[1:] for name, value in chosen.tensors.items()):
        raise PidistillError(f"{path} holds {len(best)} different entries that fit {net} equally: "
                             f"{list_labels([fit.entry for fit in best])}; name one with ,entry=NAME")
    sentences = [sentence for key, sentence in unused.items()
                 if sentence and any(f".{key}" in f".{full}" for full in leaves)]
    others = [fit.entry for fit in fits if fit is not chosen]
    if others or chosen.how or chosen.entry.label not in own or not is_whole(leaves, chosen.entry, tuple(unused)):
        sentences = [describe_choice(chosen, others, leaves), *sentences]
    if chosen.entry.rank != AVERAGE and entry is None:
        unfit = [e for e in misfits if e.rank == AVERAGE and 2 * len(e.items or e.values) >= len(chosen.tensors)]
        sentences += [f"the average {e.label[:80]} does not fit, so that these weights are no average: {misfits[e]}"
                      for e in unfit[:SHOWN]]
    return Choice(chosen.tensors, to_line(chosen.entry.label), list(dict.fromkeys(map(to_line, sentences))))


def are_equal(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors of one shape hold the same numbers, of whatever type."""
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double())


def restrict(entries: list[Entry], name: str | None, path: Path) -> list[Entry]:
    """Restrict entries to those whose label is what the user names, or begins with it."""
    named = [entry for entry in entries if is_named(entry.label, name)]
    if not named:
        raise PidistillError(f"{path} has no entry {str(name)[:60]!r} that may be weights; it has {list_labels(entries)}")
    return named


def list_labels(entries: Collection[Entry]) -> str:
    """List labels, the first of them."""
    labels = [entry.label[:80] or "." for entry in entries]
    return ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")


def is_whole(leaves: Mapping[str, Leaf], entry: Entry, unused: tuple[str, ...]) -> bool:
    """Say whether a file is one dictionary, in which all tensors are an entry's or not used."""
    names = {*entry.names}
    return all(not leaf.container and (full in names or full.startswith(unused)) for full, leaf in leaves.items()
               if isinstance(leaf.value, Tensor))


def describe_choice(chosen: Fit, others: list[Entry], leaves: Mapping[str, Leaf]) -> str:
    """Say which weights were taken, how, and what else would fit."""
    entry = chosen.entry
    words = f"weights are taken from {entry.label or '.'}{', an average' if entry.rank == AVERAGE else ''}{chosen.how}"
    segments = entry.label.split(".")
    for key in ("n_averaged", "num_updates", "initted") if entry.rank == AVERAGE else ():
        for k in range(len(segments) + 1):
            leaf = leaves.get(".".join([*segments[:k], key]))
            if leaf and is_counter(key, leaf) and not isinstance(leaf.value, str) and leaf.value == 0:
                words += f", which was never updated ({key} is 0)"
    return words + (f"; {list_labels(others)} would fit too (,entry=NAME)" if others else "")


def fit_entries(module: nn.Module, entries: list[Entry], unused: tuple[str, ...], constants: Collection[str],
                ) -> tuple[list[Fit], dict[Entry, str]]:
    """Fit every entry to a network: those that do, and for each other why not. Parameters as in `choose_weights`."""
    expected = module.state_dict()
    fits, misfits = [], {}
    donors = []  # to averages of parameters alone; they may have buffers that our network has not
    for entry in sorted(entries, key=lambda entry: entry.rank):
        values = entry.values | find_tied(expected, entry.values)
        if entry.rank != AVERAGE and not explain_no_weight(expected, values) \
                and not explain_misfit(expected, {name: values[name] for name in expected if name in values}):
            donors.append(Entry(entry.label, entry.rank, values, entry.names))
    for entry in entries:
        try:
            values, how = name_list(module, entry, donors, unused) if entry.items else (entry.values, "")
            if words := explain_no_weight(expected, values):
                raise Misfit(words)
            tensors = {name: value for name, value in values.items() if not name.startswith(unused)}
            tensors |= find_tied(expected, tensors)
            others = [donor for donor in donors if donor.label != entry.label]
            filled, source = fill(module, expected.keys() - tensors, others, constants)
            if words := explain_misfit(expected, tensors | filled):
                raise Misfit(words)
            fits.append(Fit(entry, tensors | filled, how + source))
        except Misfit as misfit:
            misfits[entry] = str(misfit)
    return fits, misfits


def explain_no_weight(expected: Mapping[str, Tensor], values: Mapping[str, Any]) -> str:
    """Say which value with one of the network's names, or with an unusual one, is no weight; empty if all are."""
    return next((describe_no_weight(name, value.value if isinstance(value, Leaf) else value)
                 for name, value in values.items() if isinstance(value, Leaf) or (
                     name in expected and not is_weight(value, not expected[name].is_floating_point()))), "")


def fill(module: nn.Module, missing: Collection[str], donors: list[Entry], constants: Collection[str],
         ) -> tuple[dict[str, Tensor], str]:
    """Fill in what an average of parameters leaves out, buffers and frozen parameters: from what was averaged, or constants.

    Gives nothing where trained parameters are missing too. Raises Misfit where it might be of two that differ.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad} or parameters.keys()
    if not missing or trained & {*missing}:
        return {}, ""
    counters = {name for name in missing if name.endswith(".num_batches_tracked")}  # which matter in training alone
    if donors:
        same = [donor for donor in donors if donor.rank == donors[0].rank]
        for name in sorted({*missing} - counters):
            if any(not are_equal(donor.values[name], same[0].values[name]) for donor in same):
                raise Misfit(f"it lacks {name[:60]}, which {list_labels(same)} have differently")
        return {name: same[0].values[name] for name in missing}, f" with the buffers of {same[0].label or '.'}"
    state = module.state_dict()
    return {name: state[name] for name in missing if name in counters or name.rpartition(".")[2] in constants}, ""


def name_list(module: nn.Module, entry: Entry, donors: list[Entry], unused: tuple[str, ...],
              ) -> tuple[dict[str, Tensor], str]:
    """Name a list of averages, which is in the order of parameters: of what was averaged, if that is there, or the network.

    Lengths and every shape must fit. Raises Misfit.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = module.state_dict().keys() - parameters.keys()
    later = {name for names in group_tied(module.state_dict()).values() for name in names[1:]}  # other names of a weight
    orders: list[tuple[dict[str, Any], str]] = []
    for donor in donors[:1]:
        seen: dict[object, str] = {}
        named = {name: value for name, value in donor.values.items() if name not in buffers | later
                 and seen.setdefault(locate(value) or name, name) == name}
        how = f" in the order of {donor.label or '.'}"
        orders += [(named, how), ({n: v for n, v in named.items() if n in parameters or n.startswith(unused)}, how)]
    orders.append((dict(module.named_parameters()), " in the order of the network's parameters, which shapes alone confirm"))
    for order, how in orders:
        for names in ([*order], [name for name in order if name not in parameters or parameters[name].requires_grad]):
            if [order[name].shape for name in names] == [value.shape for value in entry.items]:
                return dict(zip(names, entry.items)), how
    raise Misfit(f"it is a list of {len(entry.items)} tensors, which are not, in order and shape, the {len(orders[-1][0])} "
                 "parameters of the network")
