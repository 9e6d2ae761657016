"""The kernels in C against PyTorch's operators in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.nets.base import build_net
from pidistill.nets.parts import native
from pidistill.nets.parts.native import build
from pidistill.nets.parts.native.operators import KEPT
from tests.helpers import shake

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler, or not Linux")
BOUND = 1e-5  # of a tensor's size


def close(ours: Tensor, exact: Tensor, bound: float = BOUND) -> None:
    assert ours.dtype == torch.float32 and ours.shape == exact.shape
    assert (ours - exact).norm() <= bound * exact.norm() and exact.norm() > 0, float((ours - exact).norm() / exact.norm())


def both(function, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradients in float32 by the kernels, and in float64 by PyTorch."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        y = function(*leaves)
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, direction)])
    return results[0], results[1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(2, 16, 16, 8, 8), (3, 32, 48, 6, 7), (1, 64, 32, 14, 14), (5, 48, 16, 5, 3),
                                   (1, 16, 16, 1, 1), (2, 16, 128, 32, 32)])
def test_convolution_and_its_gradients(shape, threads, monkeypatch):
    """Sizes that are no multiples of the tile too, and so many tiles that several blocks are needed."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    b, c, out, h, w = shape
    x, weight, bias = torch.randn(b, c, h, w), torch.randn(out, c, 3, 3) / (9 * c) ** 0.5, torch.randn(out)
    for extra in (bias, torch.randn(b, out)):  # one bias, or one of each sample
        for ours, exact in zip(*both(native.conv3x3, x, weight, extra), strict=True):
            close(ours, exact)


def test_a_convolution_of_any_memory_format_and_without_bias():
    x, weight = torch.randn(2, 32, 8, 12), torch.randn(16, 32, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    for each in (x, native.to_channels_last(x), x.transpose(2, 3).contiguous().transpose(2, 3)):
        close(native.conv3x3(each, weight, None), exact)


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("channels", [16, 48, 192])  # groups of 4 and 6 channels
def test_norm_and_silu(channels, offset):
    """Also far from zero, where E[x^2] - E[x]^2 would lose the variance."""
    norm = nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)
    x, scale, shift = torch.randn(2, channels, 9, 7) * 3 + offset, torch.randn(2, channels), torch.randn(2, channels)
    weight, bias = torch.randn(channels), torch.randn(channels)

    def function(x, scale, shift, weight, bias):
        state = {"weight": weight, "bias": bias}
        module = nn.GroupNorm(norm.num_groups, channels, eps=norm.eps, dtype=x.dtype)
        del module.weight, module.bias
        module.weight, module.bias = state["weight"], state["bias"]
        return native.norm_silu(x, module, scale, shift) + native.norm_silu(x, module, silu=False)

    for ours, exact in zip(*both(function, x, scale, shift, weight, bias), strict=True):
        close(ours, exact, BOUND if not offset else 30 * BOUND)  # x itself has float32's rounding of 100 here


def test_silu_over_its_whole_range():
    norm = nn.GroupNorm(4, 16, affine=True)
    x = torch.linspace(-1, 1, 16 * 64).reshape(1, 16, 8, 8)
    ours = native.norm_silu(x, norm, torch.full((1, 16), 200.0), torch.zeros(1, 16))
    z = F.group_norm(x.double(), 4, eps=norm.eps) * 200
    assert z.min() < -200 and z.max() > 200
    torch.testing.assert_close(ours.double(), F.silu(z), rtol=1e-6, atol=1e-6 * float(z.max()))


@pytest.mark.parametrize("name", ["song_unet", "dhariwal_unet", "edm2_unet"])
def test_networks_are_the_same_function(name, monkeypatch):
    """Equal outputs within 1e-5 (the contract of a faster network), and gradients as closely as float32 has them."""
    spec = {"name": name, "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    net = shake(build_net(spec, (3, 8, 8), 3)).eval()
    x, t, y = torch.randn(4, 3, 8, 8), torch.linspace(-1.5, 1.1, 4), torch.arange(4) % 3
    counted = []
    call = build.run_kernel
    monkeypatch.setattr(build, "run_kernel", lambda name, *args: (counted.append(name), call(name, *args)))
    results = []
    for kernels in (build.load_library(), None):
        monkeypatch.setattr(build, "load_library", lambda kernels=kernels: kernels)
        out = net(x, t, y)
        gradients = torch.autograd.grad(out.square().sum(), list(net.parameters()))
        results.append((out.detach(), torch.cat([g.flatten() for g in gradients])))
        calls = len(counted)
    assert calls == len(counted) > 20 and "conv3x3_weight" in counted
    assert (results[0][0] - results[1][0]).norm() <= BOUND * results[1][0].norm()
    assert (results[0][1] - results[1][1]).norm() <= 3 * BOUND * results[1][1].norm()


def test_one_image_does_not_depend_on_its_batch():
    x, weight = torch.randn(7, 32, 8, 8), torch.randn(32, 32, 3, 3)
    assert torch.equal(native.conv3x3(x, weight, None)[3:5], native.conv3x3(x[3:5], weight, None))


def test_what_is_kept_for_the_backward_pass():
    """The input alone: a third of what normalisation, SiLU and convolution keep one by one."""
    norm, conv, x = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1), torch.randn(4, 16, 32, 32, requires_grad=True) * 1
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.nbytes), t)[1], lambda t: t):
        native.norm_silu_conv(x, norm, conv.weight, conv.bias)
    assert sum(sizes) < 1.2 * x.nbytes + conv.weight.nbytes


@pytest.mark.parametrize("x", [torch.randn(1, 24, 8, 8), torch.randn(1, 16, 8, 8, dtype=torch.float64),
                               torch.randn(1, 16, 8, 8, device="meta")])
def test_what_the_kernels_do_not_know_is_left_to_pytorch(x, monkeypatch):
    monkeypatch.setattr(build, "run_kernel", lambda *_: pytest.fail("called"))
    weight = torch.randn(16, x.shape[1], 3, 3, dtype=x.dtype, device=x.device)
    assert native.conv3x3(x, weight, None).shape == (1, 16, 8, 8)


def test_function_transforms_and_tracers_see_pytorchs_operators(monkeypatch):
    monkeypatch.setattr(build, "run_kernel", lambda *_: pytest.fail("called"))
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    torch.func.jvp(lambda x: native.conv3x3(x, weight, None), (x,), (x,))
    torch.jit.trace(lambda x: native.conv3x3(x, weight, None), x, check_trace=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        native.conv3x3(x, weight, None)


# Transforms that are kept ---------------------------------------------------------------------------------------------


def count_transforms(monkeypatch) -> list[str]:
    """The names of kernels that are called from now on."""
    called: list[str] = []
    plain = build.run_kernel
    monkeypatch.setattr(build, "run_kernel", lambda name, *arguments: (called.append(name), plain(name, *arguments)))
    return called


def test_a_transform_is_kept_where_images_are_drawn(monkeypatch):
    """In inference mode; the numbers are the same to the bit. Training keeps none, not even of constants."""
    x, weight = torch.randn(2, 16, 8, 8), nn.Parameter(torch.randn(16, 16, 3, 3))
    first = native.conv3x3(x, weight, None).detach()
    called = count_transforms(monkeypatch)
    with torch.inference_mode():
        drawn = [native.conv3x3(x, weight, None) for _ in range(3)]
    assert called == ["transform_weight", *["conv3x3"] * 3]
    with torch.no_grad():
        drawn.append(native.conv3x3(x, weight, None))
    assert called[4:] == ["conv3x3_of"]
    assert all(torch.equal(y, first) for y in drawn)


@pytest.mark.parametrize("change", [
    lambda w: w.data.mul_(2), lambda w: w.data.view(-1)[5:6].add_(1), lambda w: w.detach().numpy().__imul__(2),
    lambda w: setattr(w, "data", torch.ones_like(w)), lambda w: torch._foreach_mul_([w.data], 2.0)])
def test_a_weight_that_changes_is_transformed_anew(change):
    """However it is changed: PyTorch's counter of versions does not see all of these."""
    x, weight = torch.randn(2, 16, 8, 8), nn.Parameter(torch.randn(16, 16, 3, 3))
    draw = torch.inference_mode()(lambda: native.conv3x3(x, weight, None))
    before = draw()
    change(weight)
    after = draw()
    assert not torch.equal(before, after)
    close(after, F.conv2d(x.double(), weight.detach().double(), padding=1))


@torch.inference_mode()
def test_what_is_kept_goes_with_its_weight():
    x, held = torch.randn(1, 16, 4, 4), len(KEPT)
    weight = nn.Parameter(torch.randn(16, 16, 3, 3), requires_grad=False)
    native.conv3x3(x, weight, None)
    assert len(KEPT) == held + 1
    del weight
    assert len(KEPT) == held


@torch.inference_mode()
def test_large_weights_and_those_of_no_module_are_not_kept():
    held = len(KEPT)
    large = nn.Parameter(torch.randn(144, 144, 3, 3), requires_grad=False)
    native.conv3x3(torch.randn(1, 144, 4, 4), large, None)
    native.conv3x3(torch.randn(1, 16, 4, 4), torch.randn(16, 16, 3, 3), None)
    assert len(KEPT) == held
