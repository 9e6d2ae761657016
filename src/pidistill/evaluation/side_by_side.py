"""Several models are measured on the same seeds, batch by batch in turns, so that a noisy machine slows them alike."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.core.console import track
from pidistill.core.seeds import labels_of
from pidistill.core.tensors import find_device
from pidistill.evaluation.measure import Measure, Tally
from pidistill.evaluation.results import Measurement
from pidistill.evaluation.subject import Subject
from pidistill.files.folders import write_json, write_tensors
from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors
from pidistill.models.batch_size import fit_batch_size

SAVE_EVERY = 60.0  # seconds between two records of what has been measured


def measure_models(subjects: dict[str, Subject], measure: Measure, seeds: range, *, num_classes: int = 0,
                   batch: int | None = None, keep: Path | None = None, solution: str | None = None,
                   what: str = "evaluating") -> dict[str, Measurement]:
    """Measure every subject on the same seeds, with the labels that the seeds give; several processes share the batches.

    Gives the measurements by the subjects' names.

    measure: the metrics to take. num_classes: of the models.
    batch: images at a time; None finds what the memory holds.
    keep: a folder in which finished measurements stay (JSON), and unfinished ones every minute, so that a program that was
        interrupted goes on.
    solution: the subject whose images the others' distance to the teacher's solution is taken from.
    what: the job's name beside the progress bar.
    """
    for subject in subjects.values():
        subject.batch_size = batch or min(fit_batch_size(subject.model, find_device(subject.model)), len(seeds))
    turn = batch or max(subject.batch_size for subject in subjects.values())
    accounts = {name: Account(name, subject, measure, seeds, turn, keep, solution if name != solution else None)
                for name, subject in subjects.items()}
    turns = range(processes.get_rank() * turn, len(seeds), processes.get_world_size() * turn)
    for k in track(turns, what):
        numbers = seeds[k:k + turn]
        unfinished = [account for account in accounts.values() if account.result is None and account.position <= k]
        labels, solutions = labels_of(numbers, num_classes), None
        if solution and any(account.name != solution for account in unfinished):
            teacher = accounts[solution]
            # A teacher that was measured before the program was interrupted is drawn again, for the others' sake.
            solutions = teacher.add(numbers, labels, k) if teacher in unfinished else \
                teacher.subject.draw(numbers, labels, teacher.subject.batch_size)
            unfinished = [account for account in unfinished if account is not teacher]
        for account in unfinished:
            account.add(numbers, labels, k, solutions)
    return {name: account.finish() for name, account in accounts.items()}


class Account:
    """An account holds the sums of one subject while it is measured, and their record on disk.

    name: of the subject. seeds: all that are measured.
    turn: images of a turn, which the file of unfinished sums depends on.
    keep, solution: as in `measure_models`; solution is None for the subject that draws it.

    position: the number of the first image that this process has not measured. result: None until it is finished.
    """

    def __init__(self, name: str, subject: Subject, measure: Measure, seeds: range, turn: int, keep: Path | None,
                 solution: str | None):
        self.name, self.subject, self.seeds = name, subject, seeds
        self.position, self.save_time = 0, time.monotonic()
        self.tally: Tally = measure.start(len(seeds), solution is not None)
        self.result: Measurement | None = None
        self.settings = {**subject.settings, "seeds": f"{seeds[0]}-{seeds[-1]}", "features": measure.features,
                         "features_sha256": measure.hash, "metrics": sorted(self.tally.metrics),
                         "reference": measure.reference.source if measure.reference else None}
        self.record = self.partial = None
        if keep is None:
            return
        mark = hashlib.sha256(json.dumps([self.settings, measure.reference and measure.reference.mean.tolist()],
                                         sort_keys=True).encode()).hexdigest()[:12]
        slug = re.sub(r"[^\w.=-]+", "_", name)[:60].encode()[:180].decode(errors="ignore")  # file systems take 255 bytes
        self.record = keep / f"{slug}-{mark}.json"
        self.partial = keep / f"{slug}-{mark}-{turn}-{processes.get_rank()}of{processes.get_world_size()}.safetensors"
        if self.record.exists():
            self.result = Measurement.from_record(read_json(self.record), self.settings)
        elif self.partial.exists():
            state = read_tensors(self.partial)
            self.position = int(state.pop("_done").item())
            self.subject.load(state.pop("_subject"))
            self.tally.load(state)

    def add(self, seeds: range, labels: Tensor | None, k: int, solutions: Tensor | None = None) -> Tensor:
        """Draw the images of a batch of seeds, add them to the sums and return them, (B, C, H, W).

        labels: (B,) or None. k: the number of the first image in the set.
        solutions: the teacher's images (B, C, H, W) for the same seeds, if they are measured from.
        """
        images = self.subject.run(seeds, labels)
        self.tally.add(images, range(k, k + len(seeds)), seeds, solutions)
        self.position = k + len(seeds)
        if self.partial and time.monotonic() - self.save_time > SAVE_EVERY:
            write_tensors(self.partial, {**self.tally.state(), "_done": torch.tensor([self.position]),
                                         "_subject": self.subject.state()})
            self.save_time = time.monotonic()
        return images

    def finish(self) -> Measurement:
        """Add up what all processes have, write the record, and remove what lies on disk beside it."""
        if self.result is None:
            self.result = self.subject.make_measurement(self.tally.result(), self.settings)
            if self.record and processes.get_rank() == 0:
                write_json(self.record, self.result.record())
            if self.partial:
                self.partial.unlink(missing_ok=True)
        return self.result
