"""Training checkpoints: weights, averages and optimiser state as safetensors, the rest as JSON, a manifest over all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.files.manifest import verify
from pidistill.files.reading import read_json
from pidistill.files.weights import load_weights, read_tensors
from pidistill.objectives.base import Objective
from pidistill.training.ema import EMA
from pidistill.training.sharding import shard_like

Files = dict[str, dict[str, Tensor]]  # tensors by name, by file


def collect(objective: Objective, ema: EMA, optimizer: torch.optim.Optimizer) -> Files:
    """Give the tensors of a checkpoint by file; they are not copied and stay on their devices."""
    files = {name: dict(net.state_dict()) for name, net in name_networks(objective, ema)}
    return files | {"optimizer": collect_optimizer(optimizer)}


def name_networks(objective: Objective, ema: EMA) -> Iterable[tuple[str, torch.nn.Module]]:
    """Yield every network of a checkpoint, trained or averaged, after the name of its file: NAME or NAME-ema-RATE."""
    yield from objective.networks.items()
    for rate, copies in ema.networks.items():
        for name, net in copies.items():
            yield f"{name}-ema-{rate}", net


def restore(folder: Path, objective: Objective, ema: EMA, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load one checkpoint into networks, averages and optimiser; returns its record: `step`, and what else `save` was given.

    Raises PidistillError where a file is missing or does not fit, or an averaging rate has no file.
    """
    for name, net in name_networks(objective, ema):
        path = folder / f"{name}.safetensors"
        if "-ema-" in name and not path.exists():
            raise PidistillError(f"{folder} holds no average at the rate {name.split('-ema-')[1]}: `ema` cannot change "
                                 "while a run goes on")
        state = net.state_dict()
        tensors = {key: shard_like(value, state[key]) if key in state else value
                   for key, value in read_tensors(path).items()}
        load_weights(net, tensors, path)
    restore_optimizer(optimizer, read_tensors(folder / "optimizer.safetensors"), folder)
    return read_json(folder / "state.json")


def collect_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give the optimiser's state as flat tensors `index.key`; learning rates are functions of the step and not saved."""
    return {f"{i}.{key}": value for i, state in optimizer.state_dict()["state"].items() for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load flat tensors `index.key` as the optimiser's state, in shards where its parameters are.

    folder: of the checkpoint, to be named by the PidistillError that tensors of other networks raise.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    known = [p for group in optimizer.param_groups for p in group["params"]]
    if any(index >= len(known) or state[index]["exp_avg"].shape != known[index].shape for index in state):
        raise PidistillError(f"{folder / 'optimizer.safetensors'} does not fit the networks that are trained")
    for index, values in state.items():
        values |= {key: shard_like(value, known[index].detach()) for key, value in values.items() if key != "step"}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """List a folder's checkpoints by step, oldest first."""
    return sorted((path for path in checkpoints.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))


def newest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """Find the newest whole checkpoint, and say what is wrong with those after it. Each file is read and compared.

    Raises PidistillError if there are checkpoints and none is whole.
    """
    paths = list_checkpoints(checkpoints)
    damages: list[str] = []
    for path in reversed(paths):
        try:
            verify(path)
            return path, damages
        except PidistillError as error:
            damages.append(str(error))
    if paths:
        raise PidistillError(f"none of the {len(paths)} checkpoints in {checkpoints} is whole ({damages[0]}); to begin "
                             "again, delete them")
    return None, []


def set_aside(checkpoints: Path, after: int, why: str) -> None:
    """Rename the checkpoints after a step to NUMBER.WHY: they neither count nor stand in the way, and can be looked at."""
    for path in list_checkpoints(checkpoints):
        if int(path.name) > after:
            target = path.with_name(f"{path.name}.{why}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)


def latest(checkpoints: Path) -> Path | None:
    """Find the newest checkpoint without verifying it: to look at, not to go on from."""
    paths = list_checkpoints(checkpoints)
    return paths[-1] if paths else None


def read_trained_config(checkpoints: Path) -> dict[str, Any] | None:
    """Read the configuration that the newest checkpoint was trained with, of those whose record is whole."""
    for path in reversed(list_checkpoints(checkpoints)):
        try:
            verify(path, ["state.json"])
            return dict(read_json(path / "state.json")["config"])
        except (PidistillError, KeyError):
            continue
    return None


def clean(run: Path) -> None:
    """Delete what a crash left half written or half deleted in a run's folder. Only the holder of its lock may call this."""
    for path in (*run.glob("checkpoints/.*"), *run.glob(".*.[0-9]*"), *run.glob("samples/.*.[0-9]*"), *run.glob(".*.old")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
