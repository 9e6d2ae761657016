"""Resampling by sums of slices against the convolutions that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pidistill.nets.parts.resampling import halve, make_filter_kernel, resample, spread


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 2, 3, 3, 2, 1)])
@pytest.mark.parametrize("up", [False, True])
def test_resampling_is_the_convolution_of_every_channel(taps, up):
    """As EDM states it: grouped, with stride 2, transposed and times 4 upwards. Values and gradients, any padding."""
    kernel = make_filter_kernel(taps).double()
    for pad in range(len(taps) // 2 + 1):
        x = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
        f = kernel.expand(3, 1, -1, -1)
        exact = F.conv_transpose2d(x, 4 * f, groups=3, stride=2, padding=pad) if up else \
            F.conv2d(x, f, groups=3, stride=2, padding=pad)
        ours = resample(x, kernel, pad, up=up)
        direction = torch.randn(exact.shape, dtype=torch.float64)
        slopes = [torch.autograd.grad(y, x, direction)[0] for y in (ours, exact)]
        for a, b in ((ours, exact), slopes):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # the filter is of float32: not quite a product


def test_filter_is_separable_and_sums_to_one():
    kernel = make_filter_kernel((1, 3, 3, 1))
    assert kernel.shape == (1, 1, 4, 4) and kernel.sum().item() == pytest.approx(1)
    assert kernel[0, 0, 0].tolist() == [1 / 64, 3 / 64, 3 / 64, 1 / 64] and torch.equal(kernel, kernel.mT)


@pytest.mark.parametrize("up", [False, True])
def test_without_a_kernel_it_is_the_box(up):
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(resample(x, None, 0, up=up), resample(x, make_filter_kernel((1, 1)).double(), 0, up=up))


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 2, 3, 4)])
@pytest.mark.parametrize("axis", [2, 3])
def test_spreading_is_twice_the_adjoint_of_halving(taps, axis):
    """<halve x, y> = <x, spread y> / 2, also for filters that are not symmetric."""
    f, pad = torch.tensor(taps, dtype=torch.float64) / sum(taps), 1
    y = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    back = spread(y, f, pad, axis)
    x = torch.randn(back.shape, dtype=torch.float64)
    assert (halve(x, f, pad, axis) * y).sum().item() == pytest.approx((x * back).sum().item() / 2)


def test_height_and_width_are_filtered_alike():
    x, kernel = torch.randn(1, 2, 6, 8, dtype=torch.float64), make_filter_kernel((1, 3, 3, 1)).double()
    for up in (False, True):
        torch.testing.assert_close(resample(x.mT, kernel, 1, up=up), resample(x, kernel, 1, up=up).mT)
