"""Training checkpoints: weights, averages and optimiser state as safetensors, the step as JSON."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from pidistill.ema import EMA
from pidistill.files import load_weights, read_json, read_tensors, write_folder
from pidistill.objectives import Objective


def save(folder: Path, step: int, keep: int, objective: Objective, ema: EMA, optimizer: torch.optim.Optimizer,
         scaler: torch.amp.GradScaler) -> None:
    tensors = {name: net.state_dict() for name, net in objective.networks.items()}
    for rate, copies in ema.networks.items():
        tensors |= {f"{name}-ema-{rate}": net.state_dict() for name, net in copies.items()}
    write_folder(folder / f"{step:06d}", tensors | {"optimizer": flatten_optimizer(optimizer)},
                 {"state": {"step": step, "loss_scale": scaler.state_dict()}})
    prune(folder, keep)


def restore(folder: Path, objective: Objective, ema: EMA, optimizer: torch.optim.Optimizer,
            scaler: torch.amp.GradScaler) -> int:
    """Load the newest checkpoint; returns the number of steps that it had done."""
    newest = latest(folder / "checkpoints")
    if newest is None:
        return 0
    parts = [(net, name) for name, net in objective.networks.items()]
    parts += [(net, f"{name}-ema-{rate}") for rate, copies in ema.networks.items() for name, net in copies.items()]
    for net, name in parts:
        path = newest / f"{name}.safetensors"
        load_weights(net, read_tensors(path), path)
    unflatten_optimizer(optimizer, read_tensors(newest / "optimizer.safetensors"))
    state = read_json(newest / "state.json")
    if state.get("loss_scale"):
        scaler.load_state_dict(state["loss_scale"])
    return int(state["step"])


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors `index.key`; learning rates are functions of the step and not saved."""
    return {f"{i}.{key}": value for i, state in optimizer.state_dict()["state"].items() for key, value in state.items()}


def unflatten_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def by_step(checkpoints: Path) -> list[Path]:
    return sorted((path for path in checkpoints.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))


def latest(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint folder."""
    found = [path for path in by_step(checkpoints) if (path / "state.json").exists()]
    return found[-1] if found else None


def prune(checkpoints: Path, keep: int) -> None:
    for path in by_step(checkpoints)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
