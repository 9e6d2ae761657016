"""Steps whose loss or gradient is not finite: left out, counted on the device, and known to the host a little later."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class SkippedSteps:
    """Counts the steps that were left out: in a row, the longest row so far, in all. The host never waits for the device.

    device: where the counts are.
    total: steps that were left out before the run was continued.
    """

    def __init__(self, device: torch.device, total: int = 0):
        self.counts = torch.tensor([0, 0, total], device=device, dtype=torch.int64)
        self.known = [0, 0, total]
        self.pending: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    @torch.no_grad()
    def add(self, bad: Tensor) -> None:
        """Count a step. bad: (), 1 where the step is left out and 0 elsewhere."""
        streak, longest, total = self.counts.unbind()
        streak = (streak + 1) * bad.to(torch.int64)
        self.counts = torch.stack([streak, torch.maximum(longest, streak), total + bad.to(torch.int64)])
        if self.counts.is_cuda:
            host_copy = torch.empty(3, dtype=torch.int64, pin_memory=True).copy_(self.counts, non_blocking=True)
            self.pending.append((host_copy, torch.cuda.current_stream().record_event()))
        else:
            self.known = self.counts.tolist()

    def look(self) -> list[int]:
        """Give the newest counts that have arrived on the host: steps in a row, the longest row, steps in all."""
        while self.pending and self.pending[0][1].query():
            self.known = self.pending.popleft()[0].tolist()
        return self.known
