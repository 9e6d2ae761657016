"""Training objectives. One file = one objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn


class Objective(nn.Module):
    """What a run minimises. `forward(batch) -> (B,)`: the loss of every sample; only the trainer averages.

    needs: what a draw takes: `noise` (nothing but the generator) or `images`.
    networks: what is trained, averaged and saved, by name.
    frozen: what is only called; a plain list, so that nothing of it is trained, saved or synchronised.
    """

    needs: Literal["noise", "images", "pairs"]
    networks: dict[str, nn.Module]
    frozen: list[Any] = []  # noqa: RUF012 -- replaced, never changed

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """One sample's random draws as numpy values; the trainer stacks those of a batch."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def times(self, batch: dict[str, Tensor]) -> Tensor:
        """(B,): the noise levels t of a batch's samples, to say where a loss is not finite."""
        raise NotImplementedError

    def compile_parts(self, compiled: Callable[..., Any]) -> None:
        """Let what a step spends its time on run compiled: compiled(module or function, what="its name in messages")."""
        for name, network in self.networks.items():
            compiled(getattr(network, "net", network), what=f"the {name}'s network")
