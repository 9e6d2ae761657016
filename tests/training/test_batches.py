"""The draws of a step, however they are split, and the microbatches of a process."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from pidistill.training.batches import Batches, draw_batch, split_samples
from tests.runs import make_objective

CPU = torch.device("cpu")


def test_draws_do_not_depend_on_the_split():
    phase, = make_objective("2", 50).phases()
    whole = draw_batch(phase, 0, 3, 5, range(8), CPU)
    parts = [draw_batch(phase, 0, 3, 5, ks, CPU) for ks in (range(0, 3), range(3, 8))]
    for key in whole:
        assert torch.equal(whole[key], torch.cat([part[key] for part in parts]))
    other = draw_batch(phase, 1, 3, 5, range(8), CPU)
    assert not (other["z"] == whole["z"]).any()  # a second phase would draw others
    assert len(whole["z"].unique()) == 16 and whole["z"].dtype == torch.float32 and whole["i"].dtype == torch.int64


def test_batches_are_the_draws_of_each_step_in_order():
    phases = make_objective("2", 50).phases()
    batches = Batches(phases, 3, range(5, 8), [[(0, range(0, 2)), (0, range(2, 5))]], CPU)
    with closing(batches.queue):
        for step in range(5, 8):
            microbatches = [microbatch.batch for microbatch in batches.take()]
            assert [len(microbatch["z"]) for microbatch in microbatches] == [2, 3]
            whole = draw_batch(phases[0], 0, 3, step, range(5), CPU)
            assert torch.equal(torch.cat([microbatch["z"] for microbatch in microbatches]), whole["z"])


@pytest.mark.parametrize("batch, processes, micro, most", [
    (8, 1, 3, 3), (8, 3, 2, 2), (8, 3, 8, 3), (5, 5, 1, 1), (512, 3, 50, 50),
    (7, 2, 1, 2)])  # 3 and 4 samples: three microbatches each, since the first process has no sample for a fourth
def test_samples_are_split_into_as_many_microbatches_on_every_process(batch, processes, micro, most):
    """All samples once, in order; all processes take part in every exchange of gradients."""
    shares = [range(batch * rank // processes, batch * (rank + 1) // processes) for rank in range(processes)]
    splits = [split_samples(ks, batch, processes, micro) for ks in shares]
    assert len({len(split) for split in splits}) == 1
    assert [k for split in splits for ks in split for k in ks] == list(range(batch))
    assert all(1 <= len(ks) <= most for split in splits for ks in split)
