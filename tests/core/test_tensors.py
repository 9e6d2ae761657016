"""Conversions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from pidistill.core.tensors import (
    clip_images,
    copy_module,
    dequantise,
    expand_time,
    find_overlaps,
    like,
    locate,
    quantise,
    run_outside_autocast,
)
from tests.own_nets import Normed, Sliced, Tied, TiedTwice, Transposed


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


# Shared memory ------------------------------------------------------------------------------------------------------------


def test_views_of_the_same_elements_are_found():
    """The transpose, a part, every second column; not two halves, nor columns that lie between one another."""
    a, names = torch.zeros(4, 6), lambda **views: [tuple(sorted(pair)) for pair in find_overlaps(views)]
    assert names(a=a, b=a.T) == [("a", "b")] and names(a=a, b=a[1:]) == [("a", "b")]
    assert names(a=a, b=a[:, ::2]) == [("a", "b")] and names(a=a, b=a.view(24)[3:5]) == [("a", "b")]
    assert names(a=a[:, 1:3], b=a[:, 2:]) == [("a", "b")]
    for views in ({"a": a[:2], "b": a[2:]}, {"a": a[:, ::2], "b": a[:, 1::2]}, {"a": a, "b": a}, {"a": a, "b": a.clone()},
                  {"a": a[:0], "b": a}, {"a": a.to("meta"), "b": a.to("meta").T}):
        assert find_overlaps(views) == []


def test_a_tensor_s_place_is_its_own():
    a = torch.zeros(4, 6)
    assert locate(a) == locate(a.detach()) == locate(torch.nn.Parameter(a)) == locate(a[:]) is not None
    assert len({locate(view) for view in (a, a.T, a[:3], a[1:4], a.view(24), a.view(torch.int32))}) == 6
    assert locate(a[:0]) is locate(a.to("meta")) is locate(a.to_sparse()) is None


@pytest.mark.parametrize("kind", [Tied, TiedTwice, Transposed, Sliced, Normed])
def test_a_copied_module_keeps_what_it_shares(kind):
    module, x, t = kind(), torch.randn(3, 1, 4, 4), torch.zeros(3)
    copied = copy_module(module)
    ours, theirs = dict(module.named_parameters()), dict(copied.named_parameters())
    assert find_overlaps(ours) == find_overlaps(theirs) and ours.keys() == theirs.keys()
    assert torch.equal(module(x, t), copied(x, t)) and all(q.requires_grad for q in theirs.values())
    with torch.no_grad():
        for net in (module, copied):
            for p in net.parameters():
                p.mul_(2)
    assert all(torch.equal(p, q) and p.data_ptr() != q.data_ptr() for p, q in zip(ours.values(), theirs.values()))
    assert torch.equal(module(x, t), copied(x, t))


def test_a_copied_module_does_not_drag_a_file_s_memory_along():
    """Weights are often views of all that was read."""
    whole = torch.randn(10**6)
    module = nn.Linear(3, 3)
    module.weight, module.bias = nn.Parameter(whole[:9].view(3, 3)), nn.Parameter(whole[9:12])
    assert copy_module(module).weight.untyped_storage().nbytes() == 36
