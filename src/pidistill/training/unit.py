"""What data-parallel training, shards and the optimiser see of a phase: a module of the networks that it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.objectives.base import Batch, Loss, Objective, Phase
from pidistill.training.sharding import Gathered


class Unit(nn.Module):
    """A phase as a module: its parameters are those that the phase trains, and calling it gives the losses of samples, (B,).

    objective, phase: whose networks are trained.
    gathered: the trained networks' shards; none where each process has the whole networks.
    """

    def __init__(self, objective: Objective, phase: Phase, gathered: Sequence[Gathered] = ()):
        super().__init__()
        modules: Sequence[nn.Module] = gathered or [objective.networks[name] for name in phase.trains]
        self.networks = nn.ModuleList(modules)
        self.parts: list[tuple[str, Loss]] = [(part.name, part.loss) for part in phase.parts]
        self.objective = objective
        self.several = sum(len(each.parts) for each in objective.phases()) > 1
        for network in gathered:  # their weights are whole while the loss is computed, and until its backward pass is done
            self.parts = [(name, partial(network, loss)) for name, loss in self.parts]

    def forward(self, batch: Batch, step: int, part: int = 0) -> Tensor:
        name, compute = self.parts[part]
        loss, samples = compute(batch, step), len(next(iter(batch.values())))
        if loss.shape != (samples,):
            raise PidistillError(f"the phase {name} must give the loss of each of {samples} samples, ({samples},), "
                                 f"got {tuple(loss.shape)}: only the trainer averages")
        t = self.objective.times(batch)
        if t is not None:
            self.objective.note_bands(f"loss_by_t/{name}" if self.several else "loss_by_t", loss, t)
        return loss


@contextmanager
def hold_constant(objective: Objective, phase: Phase) -> Iterator[None]:
    """Let no gradient arrive at the networks that a phase does not train; it still passes through them."""
    constants = [p for name, network in objective.networks.items() if name not in phase.trains
                 for p in network.parameters() if p.requires_grad]
    for p in constants:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in constants:
            p.requires_grad_(True)
