"""A step of `pidistill distill` outside of a run: networks, distance, batch and grid are chosen, the draws stay the same."""

from __future__ import annotations

import copy
from typing import Any

import torch
from benchmarks import networks
from torch import Tensor, nn

from pidistill.core.precision import HALF, set_float32_products
from pidistill.jobs.dry_run import count_operations
from pidistill.models.denoiser import Preconditioned
from pidistill.models.grid import Grid
from pidistill.objectives.base import Objective, Setup
from pidistill.objectives.pid import PID
from pidistill.training.config import DistillConfig, RunConfig
from pidistill.training.config_file import load_config
from pidistill.training.footprint import group_tensors
from pidistill.training.recompute import recompute_networks
from pidistill.training.setup import compile_objective, place_objective
from pidistill.training.step import Step

LONG = 100_000  # the step that it believes to be at: RAdam's and the average's factors are settled there


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pid(teacher: Preconditioned, distance: str = "l2", points: int = 250, precision: Any = "fp32") -> PID:
    """The objective of a student that is a little away from its teacher. LPIPS computes in the run's half type, if any."""
    given: dict[str, Any] = {"name": distance}
    if distance == "lpips":
        given |= {"weights": str(networks.vgg_file()), "precision": precision if precision in HALF else "fp32"}
    return PID(Setup(networks.student_of(teacher), teacher, Grid(teacher.grid_times(points))), distance=given)


def on_meta(objective: PID) -> PID:
    """A copy whose tensors have shapes and no values; no weight is copied."""
    made = {id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
            for tensors in group_tensors(objective).values() for t in tensors}
    return copy.deepcopy(objective, made)


def step_of(objective: Objective, config: RunConfig) -> Step:
    """What a run of one process makes of its objective, which is on the GPU from here on, if there is one."""
    place_objective(objective, device())
    step = Step(objective, config, device())
    if config.train.recompute:
        recompute_networks(objective.networks.values())
    compile_objective(objective, config, device())
    return step


class Ours:
    """`step.Step` on the same batch again and again. options: of the run, as of `pidistill distill --set`.

    teacher: on the CPU; it is used as it is, and moved to the GPU if there is one.
    flop: of a step, as direct convolutions, 2 a multiply-add; what is computed again to save memory is not counted.
    """

    def __init__(self, teacher: Preconditioned, batch: int, *, distance: str = "l2", points: int = 250,
                 options: dict[str, Any] | None = None):
        self.device = device()
        values = {"out": "x", "train.steps": 2 * LONG, "train.batch": batch, **(options or {})}
        self.config = load_config(DistillConfig, "default", values)
        self.objective = pid(teacher, distance, points, self.config.precision)
        self.meta = on_meta(self.objective)
        self.flop = sum(count_operations(self.meta).values()) * batch
        drawn = networks.batch_of(teacher, self.objective.grid, batch)
        self.batch: dict[str, Tensor] = {key: value.to(self.device) for key, value in drawn.items()}
        self.step = step_of(self.objective, self.config)

    def __call__(self) -> None:
        set_float32_products(self.config.precision)
        self.step(LONG, lambda: [(0, self.batch)], len(self.batch["z"]))
