"""One step of a run: gradients of its microbatches, clipping, the optimiser, the averages. Nothing comes to the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from pidistill.core.precision import autocast
from pidistill.objectives.base import Objective
from pidistill.training.config import RunConfig
from pidistill.training.ema import EMA
from pidistill.training.optimizer import learning_rate, make_optimizer
from pidistill.training.sharding import copy_without_values, gather_whole, shard
from pidistill.training.skipped import SkippedSteps


class Step:
    """A step of a run, to be called once for each, with the optimiser and the averages that it changes.

    The step calls `model` instead of the objective when the objective is wrapped for data-parallel training; while its
    `no_sync()` is entered, gradients are not exchanged.

    objective: on its device, with all that it calls.
    config: of the run.
    device: of the objective.
    shards: over how many processes weights, optimiser and averages are split (FSDP2); 0: each process has all of them.
    """

    def __init__(self, objective: Objective, config: RunConfig, device: torch.device, shards: int = 0):
        skeletons = {name: copy_without_values(net) for name, net in objective.networks.items()} if shards else None
        if shards:
            shard(objective, shards, device)
        self.config, self.device = config, device
        self.parameters = [p for net in objective.networks.values() for p in net.parameters()]
        self.optimizer = make_optimizer(config.optimizer, iter(self.parameters))
        self.ema = EMA(objective.networks, config.ema, skeletons)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.skipped = SkippedSteps(device)
        self.model: nn.Module = objective
        self.no_sync: Callable[[], AbstractContextManager] = nullcontext

    def __call__(self, step: int, batches: Iterable[dict[str, Tensor]], samples: int,
                 share: float | None = None) -> tuple[Tensor, Tensor]:
        """Take a step; gives the sum of the samples' losses over `share`, and the norm of the gradient, both ().

        Where the loss or the norm is not finite, on whatever process, the step changes neither weights nor optimiser
        anywhere, its loss counts as 0, and `skipped` counts it.

        step: its number, counted from 0.
        batches: this process's microbatches.
        samples: how many samples are in them together.
        share: by which the sum is divided, by default `samples`; with several processes the mean number of samples of one.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optimizer, step, self.config.train.steps)
        total, done, share = torch.zeros((), device=self.device), 0, share or samples
        for batch in batches:
            done += len(next(iter(batch.values())))
            torch.compiler.cudagraph_mark_step_begin()  # what CUDA graphs gave the last microbatch may be overwritten
            with self.no_sync() if done < samples else nullcontext():
                with autocast(self.config.precision, self.device):
                    loss = self.model(batch).sum() / share
                loss = loss * (1 + 0 * loss.detach())  # or an infinite loss with finite gradients would be known here alone
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)  # fp16 only
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip or math.inf, foreach=True)
        norm = gather_whole(norm)
        bad = (~norm.isfinite()).float()  # one value for all processes: it is of the exchanged gradients
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read on the device, by the fused kernels
        self.optimizer.step()
        self.scaler.update()  # halves the loss scale where gradients overflowed
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(step)
        self.skipped.add(bad)
        return total.where(bad == 0, 0), norm


def place(module: nn.Module, device: torch.device, shards: bool = False) -> None:
    """Move a module to the device.

    On a GPU weights of convolutions, unless they become shards (`shards`), lie channels last, as its matrix units want.
    """
    module.to(device)
    if device.type == "cuda" and not shards:
        module.to(memory_format=torch.channels_last)
