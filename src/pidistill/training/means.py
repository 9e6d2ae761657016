"""The means of losses and notes that a run writes into metrics.jsonl, and what a checkpoint records of them."""

from __future__ import annotations

import math
from typing import Any

import torch

from pidistill.objectives.base import Objective, Part
from pidistill.training.checkpoint import PHASE
from pidistill.training.setup import PreparedRun
from pidistill.training.step import PhaseStep, Taken


class Means:
    """The means of losses and of what the objective notes, since the last line of metrics.jsonl; sums stay on the device.

    Losses are those of every phase, and of its parts where it has several, over its finite steps. A checkpoint records the
    sums, so that a run that goes on writes the lines of a run that was never interrupted.
    """

    def __init__(self, run: PreparedRun):
        self.accelerator = run.accelerator
        self.phases: dict[str, PhaseStep] = run.step.phases
        self.objective: Objective = run.step.objective
        self.objective.forget()  # trials before the first step
        known = {name: PHASE | run.record["phases"].get(name, {}) for name in self.phases}
        # (sum, count) by name.
        self.sums: dict[str, torch.Tensor] = {}
        for name, phase in known.items():
            self.sums[name] = torch.tensor([phase["loss"], phase["good"]], device=run.device)
            for part in self.list_parts(name):
                self.sums[part.name] = torch.tensor([phase["parts"].get(part.name, 0.0), phase["good"]], device=run.device)
        self.notes = {name: torch.tensor(pair, device=run.device) for name, pair in run.record.get("notes", {}).items()}
        # The norms of the last gradients.
        self.norms = {name: torch.tensor(math.nan if phase["norm"] is None else phase["norm"])
                      for name, phase in known.items()}
        self.logged: int = run.record["logged"]  # the step of the last line

    def list_parts(self, name: str) -> tuple[Part, ...]:
        """Give the parts of a phase that has several."""
        parts = self.phases[name].phase.parts
        return parts if len(parts) > 1 else ()

    def add(self, taken: dict[str, Taken]) -> None:
        """Add a step's losses; a phase whose gradient's norm is not finite counts as none."""
        for name, (loss, norm, parts) in taken.items():
            self.norms[name], good = norm, norm.isfinite()
            self.sums[name] += torch.stack([loss, good]).to(self.sums[name])
            for part, total in zip(self.list_parts(name), parts):
                self.sums[part.name] += torch.stack([total / part.share, good]).to(self.sums[name])
        for name, pair in self.objective.notes.items():
            # What is not finite was of a step that was left out.
            self.notes[name] = self.notes.get(name, torch.zeros_like(pair)) + pair.where(pair.isfinite().all(), 0)
        self.objective.notes.clear()

    def reduce(self) -> dict[str, list[float]]:
        """Give sum and count by name, over all processes."""
        both = self.sums | self.notes
        if not both:
            return {}
        reduced = self.accelerator.reduce(torch.stack([*both.values()]), "mean").tolist()
        return dict(zip(both, reduced, strict=True))

    def take(self, done: int) -> dict[str, float]:
        """Give the means by name (NaN where there is none to take); the sums begin again after step `done`."""
        values = {name: total / count if count else math.nan for name, (total, count) in self.reduce().items()}
        for pair in (*self.sums.values(), *self.notes.values()):
            pair.zero_()
        self.logged = done
        return values

    def record(self) -> dict[str, Any]:
        """Give what a checkpoint records of losses, notes and phases."""
        found = self.reduce()
        return {"logged": self.logged, "notes": {name: found[name] for name in self.notes}, "phases": {
            name: {"loss": found[name][0], "good": found[name][1],
                   "parts": {part.name: found[part.name][0] for part in self.list_parts(name)},
                   "norm": norm.item() if (norm := self.norms[name]).isfinite() else None,
                   "skipped": int(phase.skipped.counts[2]), "loss_scale": phase.scaler.state_dict()}
            for name, phase in self.phases.items()}}

    def longest_streak(self) -> int:
        """Give the longest row of steps, so far as it is known, that one phase left out."""
        return max(phase.skipped.look()[1] for phase in self.phases.values())
