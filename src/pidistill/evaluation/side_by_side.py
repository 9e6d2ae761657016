"""Several models measured on the same seeds, batch by batch in turns, so that a noisy machine slows them alike."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.core import processes as parallel
from pidistill.core.console import track
from pidistill.core.seeds import labels_of
from pidistill.core.tensors import device_of
from pidistill.evaluation.measure import Measure, Tally
from pidistill.evaluation.subject import Subject
from pidistill.files.folders import write_json, write_tensors
from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors
from pidistill.models.batch_size import fitting_batch

SAVE_EVERY = 60.0  # seconds between two records of what has been measured


def measure_models(subjects: dict[str, Subject], measure: Measure, seeds: range, *, num_classes: int = 0,
                   batch: int | None = None, keep: Path | None = None, solution: str | None = None,
                   what: str = "evaluating") -> dict[str, dict[str, Any]]:
    """The numbers of each subject over the same seeds, labels from the seeds: nfe, images_per_s, seconds and the metrics.

    Subjects take turns batch by batch, so that a noisy machine slows them alike. batch: None finds what the memory holds.
    keep: a folder in which finished rows stay (JSON), and unfinished ones every minute, so that a program that was
    interrupted goes on. solution: the subject that the others' distance to the teacher's solution is taken from. Several
    processes share the batches.
    """
    for subject in subjects.values():
        subject.at_once = batch or min(fitting_batch(subject.model, device_of(subject.model)), len(seeds))
    turn = batch or max(subject.at_once for subject in subjects.values())
    rows = {name: Row(name, subject, measure, seeds, turn, keep, solution if name != solution else None)
            for name, subject in subjects.items()}
    turns = range(parallel.rank() * turn, len(seeds), parallel.size() * turn)
    for k in track(turns, what):
        part = seeds[k:k + turn]
        waiting = [row for row in rows.values() if row.result is None and row.done <= k]
        labels, solutions = labels_of(part, num_classes), None
        if solution and any(row.name != solution for row in waiting):
            mine = rows[solution]
            again = lambda subject=mine.subject, part=part, y=labels: subject.draw(part, y, subject.at_once)
            solutions = mine.step(part, labels, k) if mine in waiting else again()
            waiting = [row for row in waiting if row is not mine]
        for row in waiting:
            row.step(part, labels, k, solutions)
    return {name: row.finish() for name, row in rows.items()}


class Row:
    """One subject's sums while they are taken, and their record on disk."""

    def __init__(self, name: str, subject: Subject, measure: Measure, seeds: range, turn: int, keep: Path | None,
                 solution: str | None):
        self.name, self.subject, self.seeds, self.done, self.saved = name, subject, seeds, 0, time.monotonic()
        self.tally: Tally = measure.start(len(seeds), solution is not None)
        self.result: dict[str, Any] | None = None
        self.settings = {**subject.settings, "seeds": f"{seeds[0]}-{seeds[-1]}", "features": measure.features,
                         "features_sha256": measure.hash, "metrics": sorted(self.tally.metrics),
                         "reference": measure.reference.source if measure.reference else None}
        self.record = self.partial = None
        if keep is None:
            return
        mark = hashlib.sha256(json.dumps([self.settings, measure.reference and measure.reference.mean.tolist()],
                                         sort_keys=True).encode()).hexdigest()[:12]
        slug = re.sub(r"[^\w.=-]+", "_", name)[:60]
        self.record = keep / f"{slug}-{mark}.json"
        self.partial = keep / f"{slug}-{mark}-{turn}-{parallel.rank()}of{parallel.size()}.safetensors"
        if self.record.exists():
            self.result = read_json(self.record)
        elif self.partial.exists():
            state = read_tensors(self.partial)
            self.done = int(state.pop("_done").item())
            self.subject.load(state.pop("_subject"))
            self.tally.load(state)

    def step(self, seeds: range, labels: Tensor | None, k: int, solutions: Tensor | None = None) -> Tensor:
        images = self.subject.run(seeds, labels)
        self.tally.add(images, range(k, k + len(seeds)), seeds, solutions)
        self.done = k + len(seeds)
        if self.partial and time.monotonic() - self.saved > SAVE_EVERY:
            write_tensors(self.partial, {**self.tally.state(), "_done": torch.tensor([self.done]),
                                         "_subject": self.subject.state()})
            self.saved = time.monotonic()
        return images

    def finish(self) -> dict[str, Any]:
        """The numbers over all processes; what lies on disk beside them is removed."""
        if self.result is None:
            self.result = {**self.subject.result(), **self.tally.result(), **self.settings}
            if self.record and parallel.rank() == 0:
                write_json(self.record, self.result)
            if self.partial:
                self.partial.unlink(missing_ok=True)
        return self.result
