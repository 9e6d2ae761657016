"""Conversions."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from pidistill.core.tensors import clip_images, dequantise, expand_time, like, quantise, run_outside_autocast


def test_like_spreads_over_the_elements():
    t, x = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.ones(2, 3, 4, 5)
    assert like(t, x).shape == (2, 1, 1, 1) and like(t, x).dtype == torch.float32
    assert like(t, torch.ones(2, 3)).shape == (2, 1)


def test_per_sample_serves_numbers_and_vectors():
    x = torch.ones(3, 2, dtype=torch.float64)
    assert expand_time(0.1, x).tolist() == [0.1] * 3 and expand_time(0.1, x).dtype == torch.float64
    assert expand_time(torch.tensor([1.0, 2.0, 3.0]), x).tolist() == [1, 2, 3]


def test_quantise_is_edms_rule():
    x = torch.tensor([-5.0, -1.0, -0.996, -0.99, 0.0, 0.992, 1.0, 5.0])
    assert quantise(x).tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_quantising_undoes_dequantising():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(dequantise(pixels)), pixels)
    assert dequantise(pixels)[[0, 255]].tolist() == [-1, 1]


def test_only_images_are_clipped():
    assert clip_images(torch.full((1, 1, 2, 2), 3.0)).max() == 1
    assert clip_images(torch.full((1, 2), 3.0)).max() == 3


def test_outside_autocast_lifts_half_types_only():
    x, w = torch.randn(4, 8), torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w).dtype == torch.bfloat16
        out = run_outside_autocast(linear, x.bfloat16(), w, None)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, (x.bfloat16().double() @ w.double().T).float(), rtol=1e-5, atol=1e-5)
        assert run_outside_autocast(linear, x.double(), w.double()).dtype == torch.float64
        assert linear(x, w).dtype == torch.bfloat16  # the region goes on
    assert run_outside_autocast(linear, x.bfloat16(), w.bfloat16()).dtype == torch.bfloat16
    assert run_outside_autocast(linear, x.to("meta"), w.to("meta")).shape == (4, 3)
