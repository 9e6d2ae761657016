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
from pidistill.training.sharding import shard_like
from pidistill.training.skipped import SkippedSteps
from pidistill.training.step import Step

Files = dict[str, dict[str, Tensor]]  # tensors by name, by file
# What a checkpoint's record says of a phase, before its first step. loss, good: the sum of the losses since the last line of
# metrics.jsonl, and the number of finite steps among them; parts: the former by part; norm: of the last gradient; skipped:
# steps left out, in all.
PHASE: dict[str, Any] = {"loss": 0.0, "good": 0.0, "parts": {}, "norm": None, "skipped": 0, "loss_scale": {}}


def collect(step: Step) -> Files:
    """Give the tensors of a checkpoint by file; they are not copied and stay on their devices."""
    files = {name: dict(net.state_dict()) for name, net in name_networks(step)}
    return files | {f"optimizer-{name}": collect_optimizer(phase.optimizer) for name, phase in step.phases.items()}


def name_networks(step: Step) -> Iterable[tuple[str, torch.nn.Module]]:
    """Yield every network of a checkpoint after the name of its file.

    NAME is a trained network, NAME-ema-RATE and NAME-profile-WIDTH its averages, copy-NAME a follower.
    """
    yield from step.objective.networks.items()
    for kind, averages in (("ema", step.ema.networks), ("profile", step.ema.profiles)):
        for key, copies in averages.items():
            for name, net in copies.items():
                yield f"{name}-{kind}-{key}", net
    for name, net in step.objective.copies.items():
        yield f"copy-{name}", net


def restore(folder: Path, step: Step) -> dict[str, Any]:
    """Load one checkpoint into a run's step; returns its record: `step`, and what else `save` was given.

    Raises PidistillError where a file is missing or does not fit, or an averaging rate has no file.
    """
    for name, net in name_networks(step):
        path = folder / f"{name}.safetensors"
        if "-ema-" in name and not path.exists():
            raise PidistillError(f"{folder} holds no average at the rate {name.split('-ema-')[1]}: `ema` cannot change "
                                 "while a run goes on")
        if "-profile-" in name and not path.exists():
            raise PidistillError(f"{folder} holds no profile of the width {name.split('-profile-')[1]}: `profiles.widths` "
                                 "cannot change while a run goes on")
        state = net.state_dict()
        tensors = {key: shard_like(value, state[key]) if key in state else value
                   for key, value in read_tensors(path).items()}
        load_weights(net, tensors, path)
    record = upgrade_record(read_json(folder / "state.json"), list(step.phases))
    for name, phase in step.phases.items():
        path = folder / f"optimizer-{name}.safetensors"
        if not path.exists() and len(step.phases) == 1:  # as runs of one phase were saved before there were several
            path = folder / "optimizer.safetensors"
        restore_optimizer(phase.optimizer, read_tensors(path), path)
        known = record["phases"].get(name, PHASE)
        if known["loss_scale"]:
            phase.scaler.load_state_dict(known["loss_scale"])
        phase.skipped = SkippedSteps(phase.device, known["skipped"])
    return record


def upgrade_record(record: dict[str, Any], phases: list[str]) -> dict[str, Any]:
    """Give a checkpoint's record as it is written now; before there were several phases it was that of a single one."""
    if "phases" in record or len(phases) != 1:
        return {"phases": {}} | record
    known = {key: record.pop(key, default) for key, default in PHASE.items()}
    return record | {"phases": {phases[0]: known}}


def collect_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give the optimiser's state as flat tensors `index.key`; learning rates are functions of the step and not saved."""
    return {f"{i}.{key}": value for i, state in optimizer.state_dict()["state"].items() for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path) -> None:
    """Load flat tensors `index.key` as the optimiser's state, in shards where its parameters are.

    path: their file, to be named by the PidistillError that tensors of other networks raise.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    known = [p for group in optimizer.param_groups for p in group["params"]]
    if any(index >= len(known) or state[index]["exp_avg"].shape != known[index].shape for index in state):
        raise PidistillError(f"{path} does not fit the networks that are trained")
    for index, values in state.items():
        values |= {key: lay_out_like(value, known[index].detach()) for key, value in values.items() if key != "step"}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def lay_out_like(value: Tensor, p: Tensor) -> Tensor:
    """Lay a moment out in memory as its parameter is, or as p's shard: the fused kernels go through both side by side."""
    value = shard_like(value, p)
    return value if value.stride() == p.stride() else torch.empty_like(p, dtype=value.dtype).copy_(value)


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


def describe_contents(path: Path) -> dict[str, str]:
    """Describe what a checkpoint holds, by the names of its files: networks, averages, phases and followers."""
    names = sorted(file.stem for file in path.glob("*.safetensors"))
    averages = [name for name in names if "-ema-" in name or "-profile-" in name]
    found = {"networks": [name for name in names if "-" not in name and name != "optimizer"],
             "averages": [name.replace("-ema-", " at ").replace("-profile-", " of width ") for name in averages],
             "phases": [name.removeprefix("optimizer-") for name in names if name.startswith("optimizer-")],
             "followers": [name.removeprefix("copy-") for name in names if name.startswith("copy-")]}
    return {what: ", ".join(given) for what, given in found.items() if given}


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
    for path in (*run.glob("checkpoints/.*"), *run.glob("profiles/.*"), *run.glob(".*.[0-9]*"),
                 *run.glob("samples/.*.[0-9]*"), *run.glob(".*.old")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
