"""The training loop: any objective, any number of processes. The only file that knows accelerate."""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from pidistill.checkpoint import restore, save
from pidistill.compiling import compiled
from pidistill.config import OptimizerConfig, RunConfig
from pidistill.ema import EMA
from pidistill.errors import PidistillError
from pidistill.files import read_metrics
from pidistill.microbatch import automatic
from pidistill.objectives import Objective
from pidistill.optim import RAdam
from pidistill.pipeline import ahead
from pidistill.precision import autocast, has_instructions, set_float32_products
from pidistill.progress import Progress, console
from pidistill.recompute import recompute_blocks
from pidistill.seeds import stream
from pidistill.tensors import send

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
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.name == "adam":
        return torch.optim.Adam(parameters, fused=True, **options)
    return RAdam(parameters, **options)  # with weight decay 0: Appendix A.1


def draws(objective: Objective, seed: int, step: int, ks: range, device: torch.device) -> dict[str, Tensor]:
    """Draws number `ks` of a step, stacked. The same whichever process asks and however the batch is split."""
    rows = [objective.draw(stream(seed, step, k)) for k in ks]
    return {key: send(torch.from_numpy(np.stack([row[key] for row in rows])), device) for key in rows[0]}


class Batches:
    """The microbatches of every step, drawn and sent by another thread while the device computes."""

    def __init__(self, objective: Objective, seed: int, steps: range, parts: Sequence[range], device: torch.device):
        self.parts = len(parts)
        wanted = ((step, part) for step in steps for part in parts)
        self.drawn = ahead(lambda each: draws(objective, seed, *each, device), wanted, threads=1, depth=2)

    def step(self) -> Iterator[dict[str, Tensor]]:
        """Those of the next step."""
        return itertools.islice(self.drawn, self.parts)


class Step:
    """One step of a run: gradients of its microbatches, clipping, the optimiser, the averages. Nothing comes to the host.

    objective: on its device, with all that it calls. `model` is called in its place, such as it in a data-parallel wrapper;
    while `no_sync()` is entered, gradients are not exchanged.
    """

    def __init__(self, objective: Objective, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        self.parameters = [p for net in objective.networks.values() for p in net.parameters()]
        self.optimizer = make_optimizer(config.optimizer, iter(self.parameters))
        self.ema = EMA(objective.networks, config.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.model: nn.Module = objective
        self.no_sync: Callable[[], AbstractContextManager] = nullcontext

    def __call__(self, step: int, batches: Iterable[dict[str, Tensor]], share: int) -> tuple[Tensor, Tensor]:
        """The sum of the losses of `share` samples over `share`, and the gradient's norm. step: counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optimizer, step, self.config.train.steps)
        total, done = torch.zeros((), device=self.device), 0
        for batch in batches:
            done += len(next(iter(batch.values())))
            torch.compiler.cudagraph_mark_step_begin()  # what CUDA graphs gave the last microbatch may be overwritten
            with self.no_sync() if done < share else nullcontext():
                with autocast(self.config.precision, self.device):
                    loss = self.model(batch).sum() / share
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)  # fp16 only, as is the leaving out of steps whose gradients overflowed
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip or math.inf, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(step)
        return total, norm


def train(objective: Objective, config: RunConfig, folder: Path,
          watchers: Sequence[Watcher] = ()) -> tuple[Averages, bool]:
    """Minimise the objective; returns its averaged networks by EMA rate, and whether this process is the main one.

    Writes metrics.jsonl, tensorboard/ and checkpoints/ into `folder`, and continues from the newest checkpoint there.
    Raises PidistillError when the loss is no longer finite.
    """
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)])
    set_float32_products(config.precision)
    plan, device = config.train, accelerator.device
    share = plan.batch // accelerator.num_processes
    if plan.batch % accelerator.num_processes:
        raise PidistillError(f"train.batch must be a multiple of {accelerator.num_processes} processes, got {plan.batch}")
    if accelerator.is_main_process and not has_instructions(config.precision, device):
        console.print(f"precision={config.precision}: this CPU has no instructions for it; fp32 is many times faster")
    first_k = share * accelerator.process_index  # k counts over the global batch

    objective.train()
    for module in (objective, *objective.frozen):
        place(module, device)
    one = Step(objective, config, device)
    start = restore(folder, objective, one.ema, one.optimizer, one.scaler)
    if plan.recompute:  # after the averages were copied: those stay as they are
        for network in objective.networks.values():
            recompute_blocks(network)
    micro = share if plan.microbatch is None else min(share, plan.microbatch) if plan.microbatch != "auto" else agreed(
        accelerator, automatic(objective, config, share, make_optimizer, device, accelerator.num_processes,
                               lambda n: draws(objective, plan.seed, start, range(n), device)))
    if config.compile != "never" and (config.compile != "auto" or device.type == "cuda"):
        mode: dict[str, Any] = {} if config.compile in ("auto", "default") else {"mode": config.compile}
        objective.compile_parts(functools.partial(compiled, dynamic=False, **mode))  # shapes are those of every step
    one.model = accelerator.prepare(objective)
    one.no_sync = functools.partial(accelerator.no_sync, one.model)
    parts = [range(first_k + k, first_k + min(k + micro, share)) for k in range(0, share, micro)]
    batches = Batches(objective, plan.seed, range(start, plan.steps), parts, device)
    log = Log(folder, start) if accelerator.is_main_process else None
    running, logged = torch.zeros((), device=device), start
    with closing(batches.drawn), Progress(start, plan.steps, plan.batch, enabled=accelerator.is_main_process) as progress:
        for step in range(start, plan.steps):
            loss, norm = one(step, batches.step(), share)
            running += loss

            done, last = step + 1, step + 1 == plan.steps
            if done % config.log.every == 0 or last:  # the only place where values come to the host
                mean = accelerator.reduce(running, "mean").item() / (done - logged)
                running.zero_()
                logged = done
                require_finite(mean, done)
                if log:
                    log.write(done, dict(loss=mean, lr=one.optimizer.param_groups[0]["lr"], grad_norm=norm.item(),
                                         images_per_s=progress.speed(done)))
                progress.update(done, mean)
            for watcher in watchers:
                if log and (done % watcher.every == 0 or last):
                    log.write(done, watcher.look(one.ema.networks, done, folder) or {})
            if done % config.checkpoint.every == 0 or last:
                if not one.scaler.is_enabled():  # before it is saved, or resuming could never recover
                    require_finite(norm.item(), done)
                if log:
                    save(folder / "checkpoints", done, config.checkpoint.keep, objective, one.ema, one.optimizer, one.scaler)
    accelerator.wait_for_everyone()
    return one.ema.networks, accelerator.is_main_process


def place(module: nn.Module, device: torch.device) -> None:
    """Move to the device; on a GPU weights of convolutions lie channels last, as its matrix units want them."""
    module.to(device)
    if device.type == "cuda":
        module.to(memory_format=torch.channels_last)


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
