"""Networks of two times, and of M times at once: they begin as those of one, and listen to what is new."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.nets.base import build_net
from pidistill.nets.parts.embeddings import PositionalEmbedding
from pidistill.nets.parts.times import SecondTime, TemporalConv, make_fourier_matrices
from tests.helpers import CLASSES, SHAPE, shake

SMALL = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NETS = {"ddpmpp": {"name": "song_unet", **SMALL},
        "ncsnpp": {"name": "song_unet", **SMALL, "embedding": "fourier", "encoder": "residual", "channel_mult_noise": 2},
        "native": {"name": "song_unet", **SMALL, "model_channels": 16, "patch": 2},
        "adm": {"name": "dhariwal_unet", **SMALL, "head_channels": 8},
        "mlp": {"name": "mlp", "width": 16, "depth": 2}}


def make(name: str, seed: int = 0, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_net(NETS[name] | options, SHAPE, CLASSES).eval()


def draw(batch: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, *SHAPE, generator=generator), torch.linspace(-1.5, 1.1, batch),
            torch.randn(batch, generator=generator), torch.arange(batch) % CLASSES)


@pytest.mark.parametrize("times", [1, 2, 3, 4, 5, 8])
def test_matrices_are_those_of_the_real_fourier_transform(times):
    u = torch.randn(times, 3, dtype=torch.float64)
    analysis, synthesis = make_fourier_matrices(times, u)
    U = torch.fft.rfft(u, dim=0)
    torch.testing.assert_close(analysis @ u, torch.cat([U.real, U.imag]), rtol=1e-13, atol=1e-13)
    V = torch.randn(times // 2 + 1, 3, dtype=torch.complex128)
    torch.testing.assert_close(synthesis @ torch.cat([V.real, V.imag]), torch.fft.irfft(V, n=times, dim=0),
                               rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("times", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("places", [(), (2, 3)])
def test_temporal_layer_is_its_formula(times, places):
    """u + silu(W u + F^-1(R . F u)), sample by sample, with torch.fft."""
    layer = shake(TemporalConv(5, times).double(), scale=0.5)
    u = torch.randn(3 * times, 5, *places, dtype=torch.float64)
    R = torch.view_as_complex(layer.multiplier.detach())
    for k in range(3):
        v = u[k * times:(k + 1) * times]
        U = torch.einsum("koi,ki...->ko...", R, torch.fft.rfft(v, dim=0))
        y = torch.einsum("oi,mi...->mo...", layer.weight, v) + torch.fft.irfft(U, n=times, dim=0)
        torch.testing.assert_close(layer(u)[k * times:(k + 1) * times], v + y * y.sigmoid(), rtol=1e-12, atol=1e-12)


def test_temporal_layer_learns_from_the_first_step():
    layer = TemporalConv(4, 4)
    u = torch.randn(8, 4, 2, 2)
    assert torch.equal(layer(u), u)
    (layer(u) * torch.randn(8, 4, 2, 2)).sum().backward()
    assert bool((layer.weight.grad != 0).all()) and bool((layer.multiplier.grad[..., 0] != 0).all())
    assert not layer.multiplier.grad[[0, 2], ..., 1].any()  # the first and the last mode of four are real: exactly no use
    assert bool((layer.multiplier.grad[1, ..., 1] != 0).all())


def test_temporal_layer_computes_in_float32_under_autocast():
    layer, u = shake(TemporalConv(4, 4)), torch.randn(8, 4, 2, 2)
    full = layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(u), full)
        half = layer(u.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(u.bfloat16().float()), rtol=2**-7, atol=2**-7)


def test_second_time_begins_at_zero():
    second = SecondTime(PositionalEmbedding(8), 8, 6)
    assert not second(torch.randn(3)).any() and shake(second)(torch.randn(3)).any()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", [{"times": 2}, {"temporal": 4}, {"times": 2, "temporal": 4}], ids=str)
def test_extensions_change_no_weight_that_there_was(name, options):
    """Not even in what a seed draws; the new weights are those of the new layers."""
    plain, wide = make(name).state_dict(), make(name, **options).state_dict()
    assert plain.keys() <= wide.keys() and all(torch.equal(wide[key], value) for key, value in plain.items())
    parts = {key.split(".")[0] for key in wide.keys() - plain.keys()}
    assert parts == {{"times": "second" if name == "mlp" else "map_second", "temporal": "map_times"}[key] for key in options}


@pytest.mark.parametrize("name", NETS)
def test_a_trained_network_listens_to_its_second_time(name):
    net, (x, t, s, y) = shake(make(name, times=2), scale=0.2), draw()
    out = net(x, torch.stack([t, s], 1), y)
    for other in (net(x, torch.stack([t, s + 0.5], 1), y), net(x, torch.stack([t + 0.5, s], 1), y)):
        assert bool(((other - out).flatten(1).abs().amax(1) > 1e-4).all())
    out.square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("times", [3, 4])
def test_a_trained_network_mixes_the_times_of_a_sample_and_no_others(name, times):
    net, (x, t, _, y) = shake(make(name, temporal=times), scale=0.2).double(), draw(2 * times)
    x, t = x.double(), t.double()
    out = net(x, t, y)
    moved = x.clone()
    moved[1] += 0.5
    change = (net(moved, t, y) - out).flatten(1).abs().amax(1)
    assert bool((change[:times] > 1e-6).all()) and not change[times:].any()
    torch.testing.assert_close(net(x[times:], t[times:], y[times:]), out[times:], rtol=1e-10, atol=1e-10)
    out.square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["ddpmpp", "adm", "mlp"])
def test_wrong_times_are_one_line(name):
    x, t, s, y = draw(6)
    both = torch.stack([t, s], 1)
    for options, c_noise, words in (({}, both, r"c_noise must be \(B,\), got \(6, 2\)"),
                                    ({"times": 2}, t, r"c_noise must be \(B, 2\), t and s, got \(6,\)"),
                                    ({"times": 2}, both[:, :1], r"got \(6, 1\)"),
                                    ({"temporal": 4}, t, "must hold 4 times of each sample, side by side, got 6")):
        with pytest.raises(PidistillError, match=words) as caught:
            make(name, **options)(x, c_noise, y)
        assert str(caught.value).startswith(NETS[name]["name"]) and "\n" not in str(caught.value)
    for options, words in (({"times": 3}, "times must be 1, for t, or 2"), ({"temporal": -1}, "temporal must be")):
        with pytest.raises(PidistillError, match=words):
            make(name, **options)
