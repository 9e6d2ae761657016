"""What every metric is: sums over images, joined by addition."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.registry import find_member, list_members
from pidistill.evaluation.metrics.base import ImageBatch, Metric, Reference

NUM, WIDTH = 12, 3
NEEDS = {"frechet": "features", "inception_score": "logits", "kid": "stored", "precision_recall": "stored",
         "trajectory_rmse": "solutions"}


def test_a_metric_without_a_result_says_so():
    with pytest.raises(NotImplementedError):
        Metric(NUM, WIDTH, None).result()
    assert Metric(NUM, WIDTH, None).add(ImageBatch(torch.zeros(2, 1), range(2))) is None


@pytest.mark.parametrize("name", list_members("metrics"))
def test_every_metric_names_what_it_needs_and_keeps_float64_sums(name):
    metric = find_member("metrics", name)(NUM, WIDTH, None, "fd")
    assert isinstance(metric, Metric) and metric.needs == NEEDS[name] and metric.num == NUM
    assert all(value.dtype == torch.float64 and not value.any() for value in metric.state.values())
    assert (metric.state == {}) == (metric.needs == "stored")  # these look at all features in the end


@pytest.mark.parametrize("name", [name for name, needs in NEEDS.items() if needs != "stored"])
def test_states_are_joined_by_addition(name):
    """What a program of two halves, or two processes, added is what one would have added; the state's size is fixed."""
    x = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(0))
    reference = Reference(torch.zeros(WIDTH, dtype=torch.float64), torch.eye(WIDTH, dtype=torch.float64))
    whole, *halves = (find_member("metrics", name)(NUM, WIDTH, reference, "fd") for _ in range(3))
    whole.add(ImageBatch(x, range(NUM), x, x, x * 0.5))
    for half, rows in zip(halves, (range(0, 5), range(5, NUM))):
        y = x[list(rows)]
        half.add(ImageBatch(y, rows, y, y, y * 0.5))
    for key, value in whole.state.items():
        torch.testing.assert_close(halves[0].state[key] + halves[1].state[key], value)
        assert halves[0].state[key].shape == value.shape
        halves[0].state[key] += halves[1].state[key]
    assert halves[0].result() == pytest.approx(whole.result(), rel=1e-9)
