"""Positions of patches, and blocks of attention with an injection, against their formulas."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from pidistill.nets.parts.transformer import InjectedBlock, embed_positions
from tests.helpers import shake


def test_block_is_its_formula():
    """Two heads of three channels, one token after the other."""
    block = shake(InjectedBlock(6, 2, 3).double(), scale=0.3)
    z, u = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 18, dtype=torch.float64)
    qkv = F.linear(block.norm0(z), block.qkv.weight, block.qkv.bias) + u
    heads = []
    for k in range(2):
        q, key, v = (qkv[:, 6 * j + 3 * k:6 * j + 3 * k + 3] for j in range(3))
        heads.append((q @ key.T / math.sqrt(3)).softmax(1) @ v)
    h = z + F.linear(torch.cat(heads, 1), block.proj.weight, block.proj.bias)
    hidden = F.linear(block.norm1(h), block.hidden.weight, block.hidden.bias)
    hidden = hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))) / 2
    torch.testing.assert_close(block(z[None], u[None])[0], h + F.linear(hidden, block.out.weight, block.out.bias),
                               rtol=1e-10, atol=1e-10)


def test_one_injection_may_serve_all_tokens():
    block, z, u = InjectedBlock(8, 2, 2).double(), torch.randn(3, 5, 8).double(), torch.randn(3, 1, 24).double()
    torch.testing.assert_close(block(z, u), block(z, u.expand(3, 5, 24)), rtol=1e-12, atol=1e-12)


def test_positions_are_sines_and_cosines_of_row_and_column():
    places = embed_positions(3, 5, 8)
    assert places.shape == (15, 8)
    for row in range(3):
        for column in range(5):
            expected = [g(place * w) for place in (row, column) for g in (math.sin, math.cos) for w in (1.0, 0.01)]
            torch.testing.assert_close(places[5 * row + column], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert len(places.unique(dim=0)) == 15
