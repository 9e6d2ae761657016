"""Training objectives: the loss of every sample, of which the trainer minimises the mean over batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn


class Objective(nn.Module):
    """An objective is what a run minimises. Calling it with a batch gives the loss of every sample, (B,).

    Only the trainer averages.

    needs: what a draw takes: `noise` (nothing but the generator) or `images`.
    networks: what is trained, averaged and saved, by name.
    frozen: what is only called; a plain list, so that nothing of it is trained, saved or synchronised.
    """

    needs: Literal["noise", "images", "pairs"]
    networks: dict[str, nn.Module]
    frozen: list[Any] = []  # noqa: RUF012 -- replaced, never changed

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw one sample's random numbers, as numpy values; the trainer stacks those of a batch."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def times(self, batch: dict[str, Tensor]) -> Tensor:
        """Give the noise levels t of a batch's samples, (B,), which a message about a loss that is not finite names."""
        raise NotImplementedError

    def compile_networks(self, compiler: Callable[..., Any]) -> None:
        """Let the networks, which a step spends its time on, run compiled.

        compiler: is called as compiler(module or function, what="its name in messages"), and gives what runs compiled: for a
            module the same object.
        """
        for name, network in self.networks.items():
            compiler(getattr(network, "net", network), what=f"the {name}'s network")
