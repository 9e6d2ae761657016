"""One step of a run: its phases, each with gradients, clipping and optimiser of its own, then the averages and followers.

Nothing comes to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.precision import autocast
from pidistill.objectives.base import Batch, Objective, Phase
from pidistill.training.buffers import TrainedBuffers
from pidistill.training.config import OptimizerConfig, RunConfig
from pidistill.training.ema import EMA, Followers
from pidistill.training.optimizer import for_phase, learning_rate, make_optimizer
from pidistill.training.sharding import ShardedNetworks, accumulate_locally, copy_without_values, gather_whole, shard
from pidistill.training.skipped import SkippedSteps
from pidistill.training.unit import Unit, hold_constant

Wrap = Callable[[nn.Module], nn.Module]


class Taken(NamedTuple):
    """What a phase gives: the sum of the samples' losses over `share`, the norm of the gradient, both (), and the former by
    part, (parts,)."""

    loss: Tensor
    norm: Tensor
    parts: Tensor


class PhaseStep:
    """A phase as a run takes it: its optimiser, its loss scale, and the count of the times that it was left out.

    objective, phase: on their device.
    unit: the phase's; it is called in its place, wrapped for data-parallel training if it is.
    no_sync: while it is entered, gradients are not exchanged.
    config: of the run.
    device: of the objective.
    """

    def __init__(self, objective: Objective, phase: Phase, unit: nn.Module, no_sync: Callable[[], AbstractContextManager],
                 config: RunConfig, device: torch.device):
        self.objective, self.phase, self.unit, self.no_sync = objective, phase, unit, no_sync
        self.settings: OptimizerConfig = for_phase(config.optimizer, phase)
        self.precision, self.steps, self.device = config.precision, config.train.steps, device
        named = [pair for name, network in objective.networks.items() if name in phase.trains
                 for pair in network.named_parameters()]
        self.names, self.parameters = [name for name, _ in named], [p for _, p in named]
        self.looked = False  # whether gradients arrive
        self.optimizer = make_optimizer(self.settings, iter(self.parameters))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.skipped = SkippedSteps(device)

    def rate(self, step: int) -> float:
        """Give the learning rate of the last time, up to step number `step`, that the phase was taken."""
        first = self.phase.first
        return learning_rate(self.settings, self.phase.find_last(step) - first, max(1, self.steps - first))

    def hold_others(self) -> AbstractContextManager:
        """Make the networks that the phase does not train constants meanwhile: whole, and without gradients."""
        stack = ExitStack()
        stack.enter_context(hold_constant(self.objective, self.phase))
        for networks, trained in ((self.objective.networks, self.phase.trains), (self.objective.copies, ())):
            if isinstance(networks, ShardedNetworks):
                stack.enter_context(networks.train_only(trained))
        return stack

    def __call__(self, step: int, batches: Iterable[tuple[int, Batch]], share: float) -> Taken:
        """Take the phase. Parameters as those of `Step`; batches: this process's microbatches, each after its part's number.

        Where the loss or the norm is not finite, on whatever process, the phase changes neither weights nor optimiser
        anywhere, its loss counts as 0, and `skipped` counts it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        total, following = torch.zeros(len(self.phase.parts), device=self.device), iter(batches)
        with self.hold_others():
            microbatch = next(following, None)
            while microbatch:
                (part, batch), microbatch = microbatch, next(following, None)
                torch.compiler.cudagraph_mark_step_begin()  # what CUDA graphs gave the last microbatch may be overwritten
                with self.no_sync() if microbatch else nullcontext():
                    with autocast(self.precision, self.device):
                        loss = self.unit(batch, step, part).sum() / share
                    if not loss.requires_grad:
                        raise PidistillError(f"the loss of {self.phase.parts[part].name} does not depend on what it trains, "
                                             f"{', '.join(self.phase.trains)}: the network's code cuts gradients off "
                                             "(no_grad, inference_mode, detach), or calls the weights of another network")
                    # Or an infinite loss with finite gradients would be known here alone.
                    loss = loss * (1 + 0 * loss.detach())
                    self.scaler.scale(loss).backward()
                total[part] += loss.detach()
        if not self.looked:
            self.say_what_is_idle()
        self.scaler.unscale_(self.optimizer)  # fp16 only
        foreach = True if self.device.type in ("cpu", "cuda") else None  # PyTorch has no such kernels on Apple's GPUs
        norm = gather_whole(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf, foreach=foreach))
        bad = (~norm.isfinite()).float()  # one value for all processes: it is of the exchanged gradients
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read on the device, by the fused kernels
        if self.device.type != "mps" or not bad.item():  # whose kernels did not look at it (PyTorch's pull request 186360)
            self.optimizer.step()
        self.scaler.update()  # halves the loss scale where gradients overflowed
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped.add(bad)
        total = total.where(bad == 0, 0)
        return Taken(total.sum(), norm, total)

    def say_what_is_idle(self) -> None:
        """Say which weights get no gradient, once: nothing uses them, or the network calls another's in their place."""
        self.looked = True
        if idle := [name for name, p in zip(self.names, self.parameters) if p.requires_grad and p.grad is None]:
            processes.say(f"{len(idle)} of {len(self.names)} weights get no gradient from {self.phase.name}, and stay as "
                          f"they are: {', '.join(idle[:3])}{', ...' * (len(idle) > 3)}")


class Step:
    """A step of a run, to be called once for each, with all that it changes: optimisers, averages, followers.

    objective: on its device, with all that it calls.
    config: of the run.
    device: of the objective.
    wrap: makes of a phase's unit what exchanges its gradients with other processes.
    shards: over how many processes weights, optimisers and averages are split (FSDP2); 0: each process has all of them.
    """

    def __init__(self, objective: Objective, config: RunConfig, device: torch.device, wrap: Wrap | None = None,
                 shards: int = 0):
        networks, gathered = dict(objective.networks), {}
        skeletons = {name: copy_without_values(net) for name, net in networks.items()} if shards else None
        if skeletons:
            gathered = shard(networks, shards, device)
            objective.networks = ShardedNetworks(networks, skeletons)
        self.objective, self.device = objective, device
        # Buffers that are not finite from the start are so on purpose, as masks of attention are.
        self.unbounded = {key for net in networks.values() for key, value in net.named_buffers()
                          if value.is_floating_point() and not value.isfinite().all()}
        self.ema = EMA({name: networks[name] for name in objective.averaged}, config.ema, skeletons,
                       config.profiles.widths)
        self.followers = Followers(objective, skeletons)
        # Of shards not: they are made of the networks' parameters as these are now, and would fail at others.
        self.layout = {} if shards else list_layout(networks)
        self.buffers: TrainedBuffers | None = None  # from the first step on: a checkpoint may be loaded before it
        self.phases: dict[str, PhaseStep] = {}
        for phase in objective.phases():
            parts = [gathered[name] for name in phase.trains if gathered]
            unit: Any = Unit(objective, phase, parts)
            unit = wrap(unit) if wrap and not shards else unit
            no_sync = partial(accumulate_locally, parts) if shards else getattr(unit, "no_sync", nullcontext)
            self.phases[phase.name] = PhaseStep(objective, phase, unit, no_sync, config, device)

    def __call__(self, step: int, take: Callable[[], Iterable[tuple[int, Batch]]], share: float) -> dict[str, Taken]:
        """Take a step; gives what each phase has given, of those that are due.

        step: its number, counted from 0.
        take: gives this process's microbatches of the next phase, each after the number of its part.
        share: by which sums of losses are divided: the samples of a step, of several processes the mean number of one.
        """
        taken: dict[str, Taken] = {}
        self.buffers = self.buffers or TrainedBuffers(self.objective.networks.values())
        for name, phase in self.phases.items():
            if phase.phase.is_due(step):
                taken[name] = phase(step, take(), share)
                self.buffers.settle(~taken[name].norm.isfinite())
        if self.layout:
            check_layout(self.layout, list_layout(self.objective.networks))
            self.layout = {}
        self.buffers.agree()
        self.ema.update(step)
        self.followers.update(step)
        return taken


Layout = dict[str, dict[str, tuple[int, ...] | None]]


def list_layout(networks: Mapping[str, nn.Module]) -> Layout:
    """List the shapes of all that networks save, by the network's name and the value's; None of buffers to come."""
    layout: Layout = {}
    for network, net in networks.items():
        layout[network] = {f"{place}.{name}".lstrip("."): None for place, module in net.named_modules()
                           for name, value in module._buffers.items() if value is None}
        layout[network] |= {name: tuple(value.shape) for name, value in net.state_dict().items()
                            if isinstance(value, Tensor)}
    return layout


def check_layout(before: Layout, now: Layout) -> None:
    """Refuse networks whose state has other names or shapes after a step: what is saved would fit no network as it is made.

    Raises PidistillError. before, now: as `list_layout` gives them.
    """
    for network, state in before.items():
        to_come = {name for name, shape in state.items() if shape is None}  # of which `load_weights` makes room
        if changed := sorted({name for name, _ in state.items() ^ now[network].items()} - to_come):
            raise PidistillError(f"the network {network!r} has other values to save once it is called ({changed[0]} is "
                                 "made, or changes its shape): what is saved would not fit it; register_buffer makes it at "
                                 "the start, or with persistent=False if they need no saving")


def place(module: nn.Module, device: torch.device, shards: bool = False) -> None:
    """Move a module to the device.

    On a GPU weights of convolutions, unless they become shards (`shards`), lie channels last, as its matrix units want.
    """
    module.to(device)
    if device.type == "cuda" and not shards:
        module.to(memory_format=torch.channels_last)
