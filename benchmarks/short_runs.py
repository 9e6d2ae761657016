"""A distillation of the bundled digits without files, for benchmarks that compare settings: one process, on the CPU.

Runs that are compared start from the same weights and see the same draws, if they have the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pidistill.jobs.build_objective import build_objective
from pidistill.models.student import Student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.batches import draw_batch
from pidistill.training.config import DistillConfig, OptimizerConfig
from pidistill.training.ema import EMA, Followers
from pidistill.training.optimizer import learning_rate, make_optimizer


@dataclass(frozen=True)
class Trained:
    """What a short run gives.

    raw, average: the student, and its average at the configuration's first rate.
    loss: the mean loss of the last tenth of the steps.
    seconds, cpu_seconds: of all steps, by the clock and by the processor; the second hardly knows of other programs.
    """

    raw: Student
    average: Student
    loss: float
    seconds: float
    cpu_seconds: float


Optimizers = Callable[[OptimizerConfig, Iterator[nn.Parameter]], torch.optim.Optimizer]


def train(config: DistillConfig, make: Optimizers = make_optimizer) -> Trained:
    """Distil as the configuration says, an objective of one phase without parts.

    make: makes the optimiser, in place of the configuration's `optimizer.name`; its rate follows the configuration.
    """
    objective = build_objective(config, load_teacher(config.teacher))
    student: Any = objective.networks["student"]
    phase, = objective.phases()
    optimizer = make(config.optimizer, student.parameters())
    ema, followers, losses = EMA(objective.networks, config.ema), Followers(objective), []
    began, cpu_began = time.perf_counter(), time.process_time()
    for step in range(config.train.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, config.train.steps)
        batch = draw_batch(phase.parts[0], 0, config.train.seed, step, range(config.train.batch), torch.device("cpu"))
        loss = phase.parts[0].loss(batch, step).mean()
        loss.backward()
        if config.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(student.parameters(), config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
        followers.update(step)
        losses.append(loss.item())
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    average: Any = ema.networks[config.ema[0]]["student"]
    last = losses[-max(1, len(losses) // 10):]
    return Trained(student, average, sum(last) / len(last), seconds, cpu_seconds)
