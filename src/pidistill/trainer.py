"""The training loop: any objective, any number of processes. The only file that knows accelerate."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from pidistill.checkpoint import restore, save
from pidistill.config import OptimizerConfig, RunConfig
from pidistill.ema import EMA
from pidistill.errors import PidistillError
from pidistill.files import read_metrics
from pidistill.microbatch import automatic
from pidistill.objectives import Objective
from pidistill.precision import autocast, set_float32_products
from pidistill.progress import Progress, console
from pidistill.recompute import recompute_blocks
from pidistill.seeds import stream

Averages = dict[float, dict[str, nn.Module]]  # by rate, then by name


class Watcher(NamedTuple):
    """Looks at the averaged networks every so many steps, and at the end; what it returns is logged."""

    every: int
    look: Callable[[Averages, int, Path], dict[str, float] | None]


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then constant (the paper) or a half cosine to zero."""
    rate = config.lr * min(1.0, (step + 1) / (config.warmup + 1))
    return rate * 0.5 * (1 + math.cos(math.pi * step / steps)) if config.decay == "cosine" else rate


def make_optimizer(config: OptimizerConfig, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    make = {"radam": torch.optim.RAdam, "adam": torch.optim.Adam}[config.name]  # RAdam, weight decay 0: Appendix A.1
    return make(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def draws(objective: Objective, seed: int, step: int, ks: range, device: torch.device) -> dict[str, Tensor]:
    """Draws number `ks` of a step, stacked. The same whichever process asks and however the batch is split."""
    rows = [objective.draw(stream(seed, step, k)) for k in ks]
    return {key: torch.from_numpy(np.stack([row[key] for row in rows])).to(device, non_blocking=True) for key in rows[0]}


def train(objective: Objective, config: RunConfig, folder: Path,
          watchers: Sequence[Watcher] = ()) -> tuple[Averages, bool]:
    """Minimise the objective; returns its averaged networks by EMA rate, and whether this process is the main one.

    Writes metrics.jsonl, tensorboard/ and checkpoints/ into `folder`, and continues from the newest checkpoint there.
    Raises PidistillError when the loss is no longer finite.
    """
    accelerator = Accelerator()
    set_float32_products(config.precision)
    plan, share = config.train, config.train.batch // accelerator.num_processes
    if plan.batch % accelerator.num_processes:
        raise PidistillError(f"train.batch must be a multiple of {accelerator.num_processes} processes, got {plan.batch}")
    first_k = share * accelerator.process_index  # k counts over the global batch

    parameters = [p for net in objective.networks.values() for p in net.parameters()]
    optimizer = make_optimizer(config.optimizer, iter(parameters))
    objective.train().to(accelerator.device)
    for module in objective.frozen:
        module.to(accelerator.device)
    ema = EMA(objective.networks, config.ema)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "fp16")
    start = restore(folder, objective, ema, optimizer, scaler)
    if plan.recompute:  # after the averages were copied: those stay as they are
        for network in objective.networks.values():
            recompute_blocks(network)
    micro = share if plan.microbatch is None else min(share, plan.microbatch) if plan.microbatch != "auto" else agreed(
        accelerator, automatic(objective, config, share, make_optimizer, accelerator.device, accelerator.num_processes,
                               lambda n: draws(objective, plan.seed, start, range(n), accelerator.device)))
    model = accelerator.prepare(objective)
    log = Log(folder, start) if accelerator.is_main_process else None
    running, logged = torch.zeros((), device=accelerator.device), start
    with Progress(start, plan.steps, plan.batch, enabled=accelerator.is_main_process) as progress:
        for step in range(start, plan.steps):
            rate = learning_rate(config.optimizer, step, plan.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for k in range(0, share, micro):
                ks = range(first_k + k, first_k + min(k + micro, share))
                batch = draws(objective, plan.seed, step, ks, accelerator.device)
                with accelerator.no_sync(model) if k + micro < share else nullcontext():
                    with autocast(config.precision, accelerator.device):
                        loss = model(batch).sum() / share
                    accelerator.backward(scaler.scale(loss))
                running += loss.detach()
            scaler.unscale_(optimizer)  # fp16 only, as is the skipping of steps whose gradients overflowed
            norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.clip or math.inf)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            ema.update(step)

            done, last = step + 1, step + 1 == plan.steps
            if done % config.log.every == 0 or last:  # the only place where values come to the host
                mean = accelerator.reduce(running, "mean").item() / (done - logged)
                running.zero_()
                logged = done
                require_finite(mean, done)
                if log:
                    log.write(done, dict(loss=mean, lr=rate, grad_norm=norm.item(), images_per_s=progress.speed(done)))
                progress.update(done, mean)
            for watcher in watchers:
                if log and (done % watcher.every == 0 or last):
                    log.write(done, watcher.look(ema.networks, done, folder) or {})
            if done % config.checkpoint.every == 0 or last:
                if not scaler.is_enabled():  # before it is saved, or resuming could never recover
                    require_finite(norm.item(), done)
                if log:
                    save(folder / "checkpoints", done, config.checkpoint.keep, objective, ema, optimizer, scaler)
    accelerator.wait_for_everyone()
    return ema.networks, accelerator.is_main_process


def agreed(accelerator: Accelerator, found: tuple[int, str]) -> int:
    """The smallest microbatch that a process found for itself, said once."""
    micro = int(accelerator.gather(torch.tensor([found[0]], device=accelerator.device)).min())
    if accelerator.is_main_process:
        console.print(f"{found[1]}" if micro == found[0] else f"{found[1]}; another process has room for {micro}")
    return micro


def require_finite(value: float, done: int) -> None:
    if not math.isfinite(value):
        raise PidistillError(f"the loss is {value} near step {done}; lower optimizer.lr, or set optimizer.clip=1.0")


class Log:
    """metrics.jsonl and TensorBoard. Continuing at step `start` drops the lines that will be written again."""

    def __init__(self, folder: Path, start: int):
        self.path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(folder) if record["step"] <= start]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)
        before = kept[-1].get("seconds", 0.0) if kept else 0.0
        self.started = time.perf_counter() - before  # the time of a run is the sum of its parts

    def write(self, step: int, values: dict[str, float]) -> None:
        if not values:
            return
        seconds = round(time.perf_counter() - self.started, 3)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values, "seconds": seconds}) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key, value, step)
        self.board.flush()
