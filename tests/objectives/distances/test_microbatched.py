"""A distance on k samples at a time: the values and gradients of the whole, the maps of k samples."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build
from pidistill.objectives.distances._microbatched import compare_in_microbatches
from tests.helpers import held_by, vgg_weights


def curved(a, b):
    """A function with large maps and a graph for both arguments, one value a sample."""
    w = torch.linspace(-1, 1, 5 * a[0].numel(), dtype=a.dtype).reshape(a[0].numel(), 5)
    return ((a.flatten(1) @ w).sin() - (b.flatten(1) @ w).cos()).square().mean(dim=1)


def pair(batch=5, shape=(2, 3), dtype=torch.float64):
    return (torch.randn(batch, *shape, dtype=dtype, requires_grad=True) for _ in range(2))


def gradients(function, a, b, weights):
    """Values, and what arrives at both arguments from a weighted sum of them."""
    values = function(a, b)
    return values, *torch.autograd.grad((values * weights).sum(), [x for x in (a, b) if x.requires_grad])


@pytest.mark.parametrize("k", [1, 2, 4, 5, 9, None])
@pytest.mark.parametrize("target", [True, False])
def test_values_and_gradients_are_those_of_the_whole(k, target):
    a, b = pair()
    b.requires_grad_(target)
    weights = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    microbatched = gradients(lambda a, b: compare_in_microbatches(curved, a, b, k), a, b, weights)
    for ours, whole in zip(microbatched, gradients(curved, a, b, weights), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-14)


def test_no_more_samples_go_through_at_once_and_no_graph_is_kept():
    sizes: list[int] = []

    def count_and_compare(a, b):
        sizes.append(len(a))
        return curved(a, b)

    a, b = pair(7)
    values, kept = held_by(lambda: compare_in_microbatches(count_and_compare, a, b.detach(), 3))
    assert sizes == [3, 3, 1] and values.requires_grad
    assert kept == a.nbytes  # the slope for the prediction, and nothing of the maps


def test_without_gradients_there_is_no_graph():
    a, b = pair()
    with torch.no_grad():
        values = compare_in_microbatches(curved, a, b, 2)
    assert not values.requires_grad and torch.allclose(values, curved(a, b))


@pytest.mark.parametrize("precision, exact", [("fp32", 1e-5), ("bf16", 2e-2), ("fp16", 2e-2)])
@pytest.mark.parametrize("run", ["fp32", "fp16"])
def test_lpips_in_microbatches(precision, exact, run):
    """Also in half precision, whose gradients each microbatch scales by its own factor; and in a run of half precision."""
    make = lambda **options: build("distances", "lpips", weights=str(vgg_weights()), size=32, precision=precision, **options)
    torch.manual_seed(0)
    a, b = (torch.rand(3, 3, 32, 32) * 2 - 1 for _ in range(2))
    a.requires_grad_(True)
    weights = torch.tensor([1.0, 0.5, 2.0])
    with torch.autocast("cpu", torch.float16, enabled=run == "fp16"):
        whole, micro = (gradients(make(**options), a, b, weights) for options in ({}, {"microbatch": 2}))
    torch.testing.assert_close(micro[0], whole[0], rtol=exact, atol=0)
    assert (micro[1] - whole[1]).norm() < exact * whole[1].norm()


def test_microbatch_of_a_distance_lowers_what_is_kept():
    a, b = (torch.rand(6, 1, 16, 16) * 2 - 1 for _ in range(2))
    a.requires_grad_(True)
    distances = [build("distances", "features", net="digits_perceptual", **options) for options in ({}, {"microbatch": 2})]
    (whole, kept), (micro, fewer) = (held_by(lambda d=distance: d(a, b)) for distance in distances)
    torch.testing.assert_close(whole, micro)
    assert fewer < 0.2 * kept


def test_microbatch_below_one_is_refused():
    with pytest.raises(PidistillError, match=r"objective.distance.microbatch must be at least 1, got 0"):
        build("distances", "features", net="digits_perceptual", microbatch=0)
