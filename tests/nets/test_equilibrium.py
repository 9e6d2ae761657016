"""The Generative Equilibrium Transformer: sizes, the fixed point, gradients through the last iterations, refusals."""

from __future__ import annotations

import functools

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.nets.base import build_net
from pidistill.nets.equilibrium import Equilibrium, accelerate, iterate, weigh_residuals
from tests.helpers import CLASSES, SHAPE, shake

TINY = dict(width=32, heads=2, injection=1, equilibrium=2, expansion=2)


def make(shape=SHAPE, classes: int = CLASSES, scale: float = 0.1, **options) -> Equilibrium:
    torch.manual_seed(0)
    return shake(Equilibrium(shape, num_classes=classes, **TINY | options), scale=scale).double()


def draw(batch: int = 3, shape=SHAPE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return x, torch.zeros(batch, dtype=torch.float64), torch.arange(batch) % CLASSES


def update_of(net: Equilibrium) -> tuple[functools.partial, torch.Tensor]:
    """f of three samples, and where its iteration begins."""
    x, _, y = draw()
    n, injections = net.make_injections(x, y)
    return functools.partial(net.update, injections=injections), torch.zeros_like(n)


# STAT.md of the paper's repository, CIFAR-10; its numbers include the table of positions.
@pytest.mark.parametrize("options, millions", [
    (dict(), 8.6), (dict(width=384, heads=6), 19.2), (dict(width=512, heads=8, expansion=8), 37.2),
    (dict(width=768, heads=12, injection=1, expansion=12), 62.2), (dict(width=768, heads=12, expansion=8), 83.5)],
    ids=["GET-T", "GET-M", "GET-S", "GET-B", "GET-B+"])
def test_sizes_are_the_paper_s(options, millions):
    with torch.device("meta"):
        for classes in (0, 10):
            net = Equilibrium((3, 32, 32), num_classes=classes, **options)
            assert round((sum(p.numel() for p in net.parameters()) + net.positions.numel()) / 1e6, 1) == millions


@pytest.mark.parametrize("solve", [iterate, accelerate])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@torch.no_grad()
def test_the_fixed_point_is_reached(solve, damping):
    f, start = update_of(make())
    far, near, h = (solve(f, start, steps, damping) for steps in (6, 24, 120))
    assert (f(h) - h).norm() < 1e-10 * h.norm()
    assert (f(near) - near).norm() < 0.01 * (f(far) - far).norm()
    torch.testing.assert_close(h, iterate(f, start, 200, 0.0), rtol=1e-8, atol=1e-8)  # the same one


@torch.no_grad()
def test_anderson_needs_fewer_iterations():
    f, start = update_of(make())
    plain, fast = (solve(f, start, 12, 0.0) for solve in (iterate, accelerate))
    assert (f(fast) - fast).norm() < 0.1 * (f(plain) - plain).norm()


@torch.no_grad()
def test_anderson_solves_a_linear_map_as_krylov_does():
    """Of dimension m - 1, it is exact after m iterations and one more; a solved sample stays solved."""
    A = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.4
    b = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    h = accelerate(lambda h: h @ A.T + b, torch.zeros_like(b), 5, 0.0)
    torch.testing.assert_close(h[0], torch.linalg.solve(torch.eye(3).double() - A, b[0]), rtol=1e-6, atol=1e-6)
    assert not h[1].any()


def test_weights_of_residuals_cancel_best():
    """Two residuals 1 and -3 along one axis: 3/4 and 1/4."""
    weights = weigh_residuals(torch.tensor([[[0.0, 1.0], [0.0, -3.0]]], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]], dtype=torch.float64), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_without_the_norm_in_f_there_is_no_fixed_point():
    """Why f ends in one, which the paper has after the last iteration alone: h would grow at a constant rate."""
    net = make(scale=0.0)
    f, h = update_of(net)
    changes = []
    for _ in range(48):
        u = h
        for block, injection in zip(net.equilibrium, f.keywords["injections"]):
            u = block(u, injection)
        changes.append((u - h).norm())
        h = u
    assert changes[47] > 0.5 * changes[5]
    g = iterate(f, torch.zeros_like(h), 47, 0.0)
    assert (f(g) - g).norm() < 0.01 * changes[47]


@pytest.mark.parametrize("options", [dict(iterations=5, unroll=2), dict(iterations=5, unroll=2, damping=0.3),
                                     dict(iterations=7, unroll=1, solver="anderson"), dict(iterations=3, unroll=3)], ids=str)
def test_the_gradient_is_that_of_the_last_iterations(options):
    """Autograd through the last `unroll` of them, written out, from a start that is a constant."""
    net, (x, t, y) = make(**options).train(), draw()
    weight = torch.randn(3, *SHAPE, dtype=torch.float64)
    (net(x, t, y) * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    f, start = update_of(net)
    before, kept = options["iterations"] - options["unroll"], options.get("damping", 0.0)
    h = (accelerate if "solver" in options else iterate)(f, start, before, kept).detach()
    for _ in range(options["unroll"]):
        h = kept * h + (1 - kept) * f(h)
    (net.make_image(h) * weight).sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-9, atol=1e-12)


def test_what_is_unrolled_changes_gradients_and_no_values():
    (x, t, y), outs, grads = draw(), [], []
    for unroll in (1, 2, 6):
        net = make(unroll=unroll).train()
        outs.append(net(x, t, y))
        grads.append(torch.autograd.grad(outs[-1].square().sum(), net.equilibrium[0].qkv.weight)[0])
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert all(not torch.allclose(a, b, rtol=1e-3) for a, b in ((grads[0], grads[1]), (grads[1], grads[2])))


def test_more_iterations_in_evaluation():
    """As an option and as an attribute; they come nearer to the fixed point."""
    net, many, (x, t, y) = make(), make(eval_iterations=20), draw()
    assert torch.equal(net.train()(x, t, y), many.train()(x, t, y))
    net.eval()
    six, twenty = net(x, t, y), many.eval()(x, t, y)
    net.eval_iterations = 20
    assert torch.equal(net(x, t, y), twenty) and not torch.equal(six, twenty)
    net.eval_iterations = 200
    exact = net(x, t, y)
    assert (twenty - exact).norm() < 0.1 * (six - exact).norm()


def test_the_time_is_not_looked_at():
    net, (x, t, y) = make().eval(), draw()
    assert net.timeless and torch.equal(net(x, t, y), net(x, t + 1, y))


def test_no_label_is_no_injection():
    net, plain, (x, t, y) = make().eval(), make(classes=0).eval(), draw()
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if key != "map_label.weight"})
    assert torch.equal(net(x, t), plain(x, t)) and torch.equal(plain(x, t, y), plain(x, t))
    assert not torch.allclose(net(x, t, y), net(x, t))


def test_it_begins_at_zero():
    assert not Equilibrium(SHAPE, **TINY)(torch.randn(2, *SHAPE), torch.zeros(2)).any()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_images_need_not_be_square(patch):
    net, (x, t, y) = make((2, 8, 12), patch=patch).eval(), draw(shape=(2, 8, 12))
    out = net(x, t, y)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-9, atol=1e-9)
    moved = x.clone()
    moved[0, 0, 7, 11] += 1
    assert bool((net(moved, t, y) - out)[0].abs().gt(1e-8).all())  # every pixel listens to every other


def test_patches_are_put_back_in_their_places():
    """An output layer that copies a constant pattern shows where its numbers go."""
    net = make((1, 4, 4), classes=0, scale=0.0).eval()
    with torch.no_grad():
        net.out.bias.copy_(torch.arange(4.0))
    image = net(torch.zeros(1, 1, 4, 4).double(), torch.zeros(1))[0, 0]
    assert torch.equal(image, torch.tensor([[0.0, 1.0], [2.0, 3.0]]).double().repeat(2, 2))


@pytest.mark.parametrize("solver", ["plain", "anderson"])
def test_autocast_gives_about_the_same_in_float32(solver):
    net, (x, t, y) = make(solver=solver, eval_iterations=9).float().eval(), draw()
    x = x.float()
    with torch.no_grad():
        full = net(x, t.float(), y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(x, t.float(), y)
    assert half.dtype == torch.float32 and (half - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("shape, options, words", [
    ((1, 7, 8), {}, "multiples of 2, got 7x8"), ((64,), {}, "use mlp"), (SHAPE, {"width": 30}, "of heads"),
    (SHAPE, {"heads": 3}, r"of heads \(3\)"), (SHAPE, {"unroll": 0}, "unroll must be 1 or more, got 0"),
    (SHAPE, {"eval_iterations": 0}, "eval_iterations must be 1 or more"), (SHAPE, {"damping": 1.0}, "below 1, got 1.0"),
    (SHAPE, {"solver": "andersen"}, "did you mean 'anderson'"),
    (SHAPE, {"solver": "anderson"}, "anderson comes before the last 6 iterations, and there are 6")])
def test_impossible_networks_are_one_line(shape, options, words):
    with pytest.raises(PidistillError, match=words) as caught:
        build_net({"name": "equilibrium"} | TINY | options, shape, 0)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_one_line():
    with pytest.raises(PidistillError, match=r"for images of shape \(1, 8, 8\), got \(1, 8, 4\)"):
        make()(*draw(shape=(1, 8, 4)))
