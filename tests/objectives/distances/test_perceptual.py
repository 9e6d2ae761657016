"""What distances over feature networks share: the comparison of maps, precision, memory, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from pidistill.core.registry import build
from pidistill.objectives.distances import _perceptual as perceptual
from pidistill.objectives.distances._perceptual import Perceptual, _MapDistance, merge_positions, split_into_blocks
from pidistill.objectives.distances.features import Features
from tests.helpers import vgg_weights


def pair(batch: int = 3, channels: int = 3, size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.rand(batch, channels, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return (0.7 * a + 0.3 * b).requires_grad_(), a


def value_and_gradient(distance, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    d = distance(prediction, target)
    gradient, = torch.autograd.grad(d.sum(), prediction)
    return d.detach(), gradient


@pytest.fixture(scope="module")
def make():
    """LPIPS with random weights and any options: large maps, five layers, weighted channels."""
    return lambda **options: build("distances", "lpips", weights=str(vgg_weights()), **{"size": 32, **options})


# the comparison of two maps --------------------------------------------------------------------------------------------


def plain_map_distance(f: Tensor, g: Tensor, head: Tensor | None, normalize: bool) -> Tensor:
    """Zhang et al. (2018), Eq. 1, for one layer as it is written."""
    if normalize:
        f, g = (m / m.square().sum(dim=1, keepdim=True).sqrt() for m in (f, g))
    square = (f - g).square() * (1 if head is None else head.reshape(1, -1, *[1] * (f.ndim - 2)))
    return square.flatten(2).sum(dim=1).mean(dim=1) if f.ndim > 2 else square.sum(dim=1)


@pytest.mark.parametrize("block", [1, 7, 2**20])  # one position at a time, some, all
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 5), (3, 4)])
@pytest.mark.parametrize("weighted, normalize", [(True, True), (False, True), (True, False)])
def test_maps_are_compared_by_equation_1(shape, weighted, normalize, block, monkeypatch):
    """Values, and the gradients of both maps, in float64."""
    monkeypatch.setattr(perceptual, "BLOCK", block)
    f, g = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    head = torch.rand(4, dtype=torch.float64) if weighted else None
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    answers = []
    for function in (_MapDistance.apply, plain_map_distance):
        d = function(f, g, head, normalize)
        answers.append((d, *torch.autograd.grad((d * weights).sum(), (f, g))))
    for ours, plain in zip(*answers, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-7, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    f, g = (torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    head = torch.rand(3, dtype=torch.float64)
    assert gradcheck(lambda f, g: _MapDistance.apply(f, g, head, True), (f, g))


def test_only_the_gradients_that_are_needed_are_computed():
    f, g = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    _MapDistance.apply(f, g, None, True).sum().backward()
    assert f.grad is not None and g.grad is None


def test_maps_of_either_memory_format_give_the_same():
    f, g = (torch.randn(2, 8, 4, 6) for _ in range(2))
    last = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in (f, g)]
    f.requires_grad_()
    d, gradient = value_and_gradient(lambda f, g: _MapDistance.apply(f, g, None, True), f, g)
    d_last, gradient_last = value_and_gradient(lambda f, g: _MapDistance.apply(f, g, None, True), *last)
    torch.testing.assert_close(d_last, d)
    torch.testing.assert_close(gradient_last, gradient)


@pytest.mark.parametrize("size", [1, 10, 64, 10**6])
def test_blocks_cover_every_number_once_and_are_no_larger_than_the_cache(size, monkeypatch):
    monkeypatch.setattr(perceptual, "BLOCK", size)
    f, channels = torch.zeros(5, 4, 6), 4
    sizes = []
    for samples, x, y in split_into_blocks(f, f):
        x += 1
        assert len(f[samples]) == len(x) and y.shape == x.shape
        sizes.append(x.numel())
    assert bool((f == 1).all()) and max(sizes) <= max(size, channels)


def test_positions_are_all_axes_after_the_channels():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(merge_positions(x), x.reshape(2, 3, 20)) and merge_positions(torch.zeros(2, 3)).shape == (2, 3, 1)


class Powers(Perceptual):
    """Two layers that are known: the images, and their squares beside them."""

    def __init__(self, heads=None, **options):
        super().__init__(**{"size": None, "precision": "fp32", "channels_last": False, "microbatch": None, **options})
        self.weights = heads

    @property
    def heads(self):
        return self.weights

    def layers(self, x):
        return [x, torch.cat([x, x.square()], dim=1)]


def test_layers_are_summed_with_their_weights():
    a, b = (torch.rand(2, 2, 3, 3, dtype=torch.float64) + 0.1 for _ in range(2))
    heads = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 0.0, 3.0, 1.0], dtype=torch.float64)]
    maps = Powers().layers(a), Powers().layers(b)
    for weights in (None, heads):
        expected = sum(plain_map_distance(f, g, w, True) for f, g, w in zip(*maps, weights or (None, None), strict=True))
        torch.testing.assert_close(Powers(weights)(a, b), expected)
        torch.testing.assert_close(Powers(weights, microbatch=1)(a, b), expected)


# precision, memory, gradients ------------------------------------------------------------------------------------------


def test_size_precision_and_memory_format():
    a, b = pair(4, 1, 8)
    resized = [nn.functional.interpolate(x, (16, 16), mode="bilinear", align_corners=False) for x in (a, b)]
    full = Features(net="digits_perceptual")(*resized)
    distance = Features(net="digits_perceptual", size=16)
    distance.check((1, 8, 8))
    torch.testing.assert_close(distance(a, b), full)
    half = Features(net="digits_perceptual", precision="bf16")(*resized)
    assert half.dtype == torch.float32 and (half - full).abs().max() > 0
    torch.testing.assert_close(half, full, rtol=0.05, atol=0)
    last = Features(net="digits_perceptual", channels_last=True)
    torch.testing.assert_close(last(*resized), full, rtol=1e-5, atol=1e-6)
    assert last.compute_maps(resized[0])[0].is_contiguous(memory_format=torch.channels_last)


def test_batch_statistics_are_never_used():
    """An objective in training mode must not change the feature network."""
    a, b = pair(4, 1, 16)
    distance = Features(net="digits_perceptual").train()
    torch.testing.assert_close(distance(a[:1], b[:1]), distance(a, b)[:1])


@pytest.mark.parametrize("scale", [1.0, 1e-4, 65536.0])
def test_half_precision_keeps_small_and_large_gradients(make, scale):
    """float16 holds 6e-8 to 65504; the gradient of a mean over images is around its lower end."""
    a, b = pair()
    expected, = torch.autograd.grad(scale * make()(a, b).mean(), a)
    for precision, error in (("fp16", 0.01), ("bf16", 0.05)):
        gradient, = torch.autograd.grad(scale * make(precision=precision)(a, b).mean(), a)
        assert 0 < (gradient - expected).norm() < error * expected.norm()


def test_precision_is_the_option_s_and_not_the_run_s(make):
    a, b = pair()
    full, half = make(), make(precision="bf16")
    outside = full(a, b), half(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(full(a, b), outside[0])
        torch.testing.assert_close(half(a, b), outside[1])


def run_and_count(function) -> tuple[torch.Tensor, int]:
    """What a function returns, and how many elements autograd keeps for its backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        return function(), sum(sizes)


def test_no_graph_is_kept_for_the_target(make):
    a, b = pair()
    distance = make()
    _, prediction_only = run_and_count(lambda: distance(a, b))
    _, both = run_and_count(lambda: distance(a, b.clone().requires_grad_()))
    assert both > 1.8 * prediction_only
    with torch.no_grad():
        assert run_and_count(lambda: distance(a, b))[1] == 0


def test_a_target_that_wants_its_gradient_gets_it(make):
    """Without stop-gradient both sides are differentiated."""
    a, b = pair()
    distance = make()
    _, swapped = value_and_gradient(lambda x, y: distance(y, x), a, b)
    _, plain = value_and_gradient(distance, a, b)
    torch.testing.assert_close(swapped, plain, rtol=1e-3, atol=1e-7)  # the distance is symmetric


def test_gradient_is_finite_where_all_features_are_zero(make):
    distance = make()
    with torch.no_grad():
        for conv in distance.convs.values():
            conv.bias.fill_(-1e4)
    a, b = pair()
    d, gradient = value_and_gradient(distance, a, b)
    assert (d == 0).all() and gradient.isfinite().all()
