"""The means of losses and notes: over finite steps alone, by part, begun again with every line, and kept by checkpoints."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pidistill.objectives.base import Part
from pidistill.objectives.pid import PID
from pidistill.training.means import Means
from pidistill.training.setup import prepare
from pidistill.training.step import Taken
from tests.runs import make_run


class Parted(PID):
    """PID's loss as two parts of the batch, three to one."""

    def phases(self):
        phase, = super().phases()
        part, = phase.parts
        parts = tuple(Part(name, share, part.draw, part.loss) for name, share in (("much", 0.75), ("little", 0.25)))
        return [dataclasses.replace(phase, parts=parts)]


def make_means(folder, parts=False):
    objective, config, folder = make_run(folder)
    objective.__class__ = Parted if parts else type(objective)
    run = prepare(objective, config, folder)
    return Means(run), run


def taken(loss, norm=1.0, *parts):
    return {"pid": Taken(torch.tensor(loss), torch.tensor(norm), torch.tensor([*parts]))}


def test_a_step_that_was_left_out_counts_as_none(tmp_path):
    means, _ = make_means(tmp_path)
    assert math.isnan(means.take(0)["pid"])  # of no step
    for loss, norm in ((1.0, 2.0), (0.0, math.inf), (4.0, 3.0)):
        means.add(taken(loss, norm))
    assert means.norms["pid"].item() == 3.0 and means.take(3) == {"pid": 2.5} and means.logged == 3
    assert math.isnan(means.take(4)["pid"])  # begun again


def test_parts_are_means_over_their_own_samples(tmp_path):
    means, _ = make_means(tmp_path, parts=True)
    means.add(taken(2.0, 1.0, 1.5, 0.5))
    means.add(taken(4.0, 1.0, 3.0, 1.0))
    assert means.take(2) == {"pid": 3.0, "much": pytest.approx(3.0), "little": pytest.approx(3.0)}


def test_notes_are_means_of_what_was_noted_and_of_finite_steps(tmp_path):
    means, run = make_means(tmp_path)
    objective = run.step.objective
    for values in ([1.0, 3.0], [math.nan, 1.0], [8.0]):
        objective.note("gap", torch.tensor(values))
        means.add(taken(0.0))
        assert not objective.notes
    assert means.take(3)["gap"] == pytest.approx(4.0)  # 1, 3 and 8: the second step's is left out


def test_what_a_checkpoint_records_goes_on(tmp_path):
    means, run = make_means(tmp_path, parts=True)
    means.take(1)
    means.add(taken(2.0, 5.0, 1.5, 0.5))
    run.step.objective.note("gap", torch.tensor([3.0]))
    means.add(taken(4.0, math.inf, 3.0, 1.0))
    record = means.record()
    assert record["logged"] == 1 and record["phases"]["pid"]["norm"] is None  # JSON has no infinity
    again = Means(dataclasses.replace(run, record=record))
    for each in (means, again):
        each.add(taken(6.0, 1.0, 4.5, 1.5))
    assert again.take(4) == means.take(4) and again.logged == 4
