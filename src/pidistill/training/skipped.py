"""Steps whose loss or gradient is not finite: left out, counted on the device, and known to the host a little later."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class SkippedSteps:
    """How many steps were left out: in a row, the longest row so far, in all. The host never waits for the device.

    total: of the part of the run that came before.
    """

    def __init__(self, device: torch.device, total: int = 0):
        self.counts = torch.tensor([0, 0, total], device=device, dtype=torch.int64)
        self.known = [0, 0, total]
        self.coming: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    @torch.no_grad()
    def add(self, bad: Tensor) -> None:
        """bad: (), 1 where a step is left out and 0 elsewhere."""
        row, longest, total = self.counts.unbind()
        row = (row + 1) * bad.to(torch.int64)
        self.counts = torch.stack([row, torch.maximum(longest, row), total + bad.to(torch.int64)])
        if self.counts.is_cuda:
            arriving = torch.empty(3, dtype=torch.int64, pin_memory=True).copy_(self.counts, non_blocking=True)
            self.coming.append((arriving, torch.cuda.current_stream().record_event()))
        else:
            self.known = self.counts.tolist()

    def look(self) -> list[int]:
        """The newest counts that have arrived."""
        while self.coming and self.coming[0][1].query():
            self.known = self.coming.popleft()[0].tolist()
        return self.known
