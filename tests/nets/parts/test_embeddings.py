"""Embeddings of noise levels: their order, frequencies and types."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.nets.parts.embeddings import FourierEmbedding, PositionalEmbedding


def test_positional_embedding_orders_and_frequencies():
    t = torch.tensor([0.7, -1.2], dtype=torch.float64)
    for options, last, first in ((dict(), 1e-4, torch.sin), (dict(endpoint=False, cos_first=True), 1e-3, torch.cos)):
        out = PositionalEmbedding(8, **options).double()(t)
        second = torch.cos if first is torch.sin else torch.sin
        torch.testing.assert_close(out[:, 0], first(t))
        torch.testing.assert_close(out[:, 4], second(t))
        torch.testing.assert_close(out[:, 7], second(t * last), rtol=1e-5, atol=1e-9)


def test_fourier_features_are_sines_then_cosines_of_random_frequencies():
    net, t = FourierEmbedding(2000, scale=5.0).double(), torch.tensor([0.7, -1.2], dtype=torch.float64)
    assert net.freqs.std().item() == pytest.approx(5, rel=0.1) and "freqs" in net.state_dict()
    phase = 2 * math.pi * t[:, None] * net.freqs
    torch.testing.assert_close(net(t), torch.cat([phase.sin(), phase.cos()], dim=1))


def test_fixed_frequencies_are_in_no_state_dictionary():
    assert PositionalEmbedding(8).state_dict() == {}


@pytest.mark.parametrize("embedding", [PositionalEmbedding, FourierEmbedding])
def test_the_time_s_type_decides(embedding):
    """A time in float64 is embedded in float64 by frequencies in float32, and distinguishes what float32 cannot."""
    net, t = embedding(8), torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    out = net(t)
    assert out.dtype == torch.float64 and not torch.equal(out[0], out[1]) and net(t.float()).dtype == torch.float32
