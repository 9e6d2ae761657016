"""The layers of the U-Nets: cheap equivalents against what EDM computes, blocks recomputed plainly, precision."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.models.grid import Grid, karras_times
from pidistill.models.student import Student
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.base import build_net
from pidistill.nets.parts.unet import ADM, SONG, Conv2d, UNetBlock, check_image_size, convolve, make_group_norm
from tests.helpers import CLASSES, shake, start

NETS = {"song_unet": {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]},
        "dhariwal_unet": {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
                          "head_channels": 16, "dropout": 0.0}}


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_box_resampling_equals_the_general_filter(direction, kernel):
    conv = Conv2d(4, 4 if kernel == 0 else 6, kernel, **{direction: True}).double()
    general = copy.deepcopy(conv)
    general.box = False
    x = torch.randn(2, 4, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(conv(x), general(x.clone()), rtol=1e-6, atol=1e-6)  # the filter is stored in float32


def test_general_filter_keeps_a_constant_image():
    """Taps sum to 1 on the way down, and to 1 for each output on the way up (away from the zero padding)."""
    x = torch.full((1, 2, 8, 8), 0.3)
    for direction in ("up", "down"):
        out = Conv2d(2, 2, 0, resample_filter=(1, 3, 3, 1), **{direction: True})(x)
        assert out.shape[-1] == (16 if direction == "up" else 4)
        torch.testing.assert_close(out[..., 2:-2, 2:-2] if direction == "up" else out[..., 1:-1, 1:-1],
                                   torch.full_like(out, 0.3)[..., 2:-2, 2:-2] if direction == "up"
                                   else torch.full_like(out, 0.3)[..., 1:-1, 1:-1])


def test_fused_downsampling_filters_after_the_convolution():
    conv = Conv2d(3, 5, 3, down=True, resample_filter=(1, 3, 3, 1), fused=True).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    f = torch.tensor([1, 3, 3, 1], dtype=torch.float64)
    f = (torch.outer(f, f) / 64)[None, None].expand(5, 1, 4, 4)
    wide = F.conv2d(x, conv.weight, conv.bias, padding=2)
    torch.testing.assert_close(conv(x), F.conv2d(wide, f, groups=5, stride=2), rtol=1e-6, atol=1e-6)


def test_attention_is_softmax_over_edms_interleaved_qkv():
    block = shake(UNetBlock(8, 8, 16, attention=True), scale=0.3).double()
    x, emb = torch.randn(3, 8, 4, 6, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    plain = copy.deepcopy(block)
    plain.attention = False
    h = plain(x, emb)
    q, k, v = block.qkv(block.norm2(h)).reshape(3, 8, 3, -1).unbind(2)
    w = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(8)).softmax(dim=2)
    a = torch.einsum("nqk,nck->ncq", w, v).reshape(h.shape)
    expected = (block.proj(a) + h) * math.sqrt(0.5)
    torch.testing.assert_close(block(x, emb), expected, rtol=1e-10, atol=1e-10)
    assert (expected - h * math.sqrt(0.5)).abs().max() > 0.1  # attention has something to say


def plain_norm(x: Tensor, norm: nn.GroupNorm, eps: float) -> Tensor:
    """Group normalisation from its definition."""
    groups = x.reshape(len(x), norm.num_groups, -1)
    groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + eps).sqrt()
    return groups.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("cin, cout, direction", [(8, 8, None), (8, 12, None), (8, 8, "down"), (8, 8, "up"), (8, 12, "up")])
def test_adm_block_from_its_formulas(cin, cout, direction):
    """Scale and shift after norm1, in this order; skip without weights where only the size changes; two heads."""
    options = {} if direction is None else {direction: True}
    block = UNetBlock(cin, cout, 16, attention=True, **options, style=replace(ADM, head_channels=cout // 2))
    block = shake(block, scale=0.3).double()
    x, emb = torch.randn(2, cin, 4, 6, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)

    def resized(x: Tensor) -> Tensor:
        if direction == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if direction == "up" else x

    def conv(x: Tensor, layer: Conv2d) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel // 2)

    h = conv(resized(F.silu(plain_norm(x, block.norm0, 1e-5))), block.conv0)
    params = emb @ block.affine.weight.T + block.affine.bias
    scale, shift = params[:, :cout, None, None], params[:, cout:, None, None]
    h = conv(F.silu(plain_norm(h, block.norm1, 1e-5) * (1 + scale) + shift), block.conv1)
    h = h + (resized(x) if cin == cout else conv(resized(x), block.skip))
    qkv = conv(plain_norm(h, block.norm2, 1e-5), block.qkv).flatten(2)
    heads = []
    for rows in qkv.chunk(2, dim=1):
        q, k, v = rows[:, 0::3], rows[:, 1::3], rows[:, 2::3]
        w = (q.transpose(1, 2) @ k / math.sqrt(cout // 2)).softmax(dim=2)
        heads.append((w @ v.transpose(1, 2)).transpose(1, 2))
    expected = h + conv(torch.cat(heads, 1).reshape(h.shape), block.proj)
    torch.testing.assert_close(block(x, emb), expected, rtol=1e-9, atol=1e-9)
    assert (expected - h).abs().max() > 0.1 and scale.abs().max() > 0.1


def test_skip_that_resamples_has_weights_only_where_the_style_says():
    def keys(style, cout):
        return sorted(k for k in UNetBlock(8, cout, 4, down=True, style=style).state_dict() if k.startswith("skip."))

    assert keys(ADM, 8) == ["skip.resample_filter"]
    assert keys(ADM, 16) == keys(SONG, 8) == ["skip.bias", "skip.resample_filter", "skip.weight"]


def test_attention_needs_heads_of_equal_width():
    with pytest.raises(PidistillError, match="224 channels do not divide into 3 attention heads of about 64"):
        UNetBlock(224, 224, 8, attention=True, style=ADM)


@pytest.mark.parametrize("channels, groups", [(3, 1), (8, 2), (64, 16), (128, 32), (192, 32)])
def test_groups_are_at_most_32_of_at_least_4_channels(channels, groups):
    norm = make_group_norm(channels, 1e-3)
    assert norm.num_groups == groups and norm.num_channels == channels and norm.eps == 1e-3


def test_channels_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(PidistillError, match="136 channels do not divide into 32 groups"):
        make_group_norm(136, 1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [3, 16])  # of which 16 has kernels in C
def test_convolution_keeps_the_size(kernel, channels):
    x, weight, bias = torch.randn(2, channels, 5, 7), torch.randn(16, channels, kernel, kernel), torch.randn(16)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2)
    torch.testing.assert_close(convolve(x, weight, bias).double(), expected, rtol=1e-4, atol=1e-4)


def test_image_sizes_are_multiples_of_the_step():
    assert check_image_size("net", (3, 8, 16), 8) == (3, 8)
    for shape, words in (((3, 8, 12), "net: height and width must be multiples of 8, got 8x12"),
                         ((64,), r"net needs images of shape \(C, H, W\), got \(64,\); use mlp")):
        with pytest.raises(PidistillError, match=words):
            check_image_size("net", shape, 8)


# precision -----------------------------------------------------------------------------------------------------------


def make_net(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A shaken network, and z at T, times and labels for it."""
    net = shake(build_net({"name": name, **NETS[name]}, (1, 8, 8), CLASSES)).eval()
    return net, start((1, 8, 8), 12, dtype=torch.float32), torch.linspace(-1.5, 1.1, 12), torch.arange(12) % CLASSES


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_autocast_leaves_embedding_and_last_layers_alone(name):
    net, x, t, y = make_net(name)
    seen = []
    last = net.out_conv if name == "dhariwal_unet" else net.dec["8x8_aux_conv"]
    last.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    net.map_layer1.register_forward_hook(lambda module, args, out: seen.append(out))
    body = next(m for m in net.modules() if isinstance(m, UNetBlock))
    body.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    plain = net(x / 80, t, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = net(x / 80, t, y)
    assert cast.dtype == torch.float32 and not torch.equal(cast, plain)
    torch.testing.assert_close(cast, plain, rtol=0.1, atol=0.1 * plain.std().item())
    (emb, body_type, last_type), (emb_cast, body_cast, last_cast) = seen[:3], seen[3:]
    assert torch.equal(emb, emb_cast)
    assert (body_type, last_type, body_cast, last_cast) == (*[torch.float32] * 2, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_autocast_keeps_float64(name):
    net, x, t, y = make_net(name)
    net, x, t = net.double(), x.double() / 80, t.double()
    plain = net(x, t, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = net(x, t, y)
    assert cast.dtype == torch.float64 and torch.equal(cast, plain)


@pytest.mark.parametrize("name, limit", [("song_unet", 0.85), ("dhariwal_unet", 0.95)])
@torch.no_grad()
def test_autocast_rounds_differences_in_time_less_than_bfloat16_throughout(name, limit):
    """R.m.s. error of (t_i / (t_i - t_{i+1})) (1 - t_{i+1}/T) (F_{i+1} - F_i) at N = 250.

    The bundled network, where the term itself is 0.45: 0.12 under autocast, 0.18 in bfloat16 throughout, 1e-5 in float32.
    What remains is the rounding of the convolutions. A random ADM network: 0.32 against 0.39.
    """
    teacher = load_teacher("bundled:digits")
    facts = teacher.facts()
    net = teacher.model if name == "song_unet" else shake(build_net({"name": name, **NETS[name]}, **shape_of(facts))).eval()
    t = Grid(karras_times(250, 0.002, 80.0, 7.0)).t
    i = torch.arange(0, 249, 10)
    z, y = start(facts["shape"], len(i), dtype=torch.float32), torch.arange(len(i)) % 10
    factor = (t[i] / (t[i] - t[i + 1]) * (1 - t[i + 1] / 80))[:, None, None, None]

    def term(net: nn.Module, dtype: torch.dtype, autocast: bool = False) -> Tensor:
        student = Student(net, {}, facts)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            now, then = (student.F(z.to(dtype), u, y).double() for u in (t[i], t[i + 1]))
        return factor * (then - now)

    def error(*args) -> float:
        return (term(*args) - exact).square().mean().sqrt().item()

    exact = term(copy.deepcopy(net).double(), torch.float64)
    mixed, single = error(net, torch.float32, True), error(net, torch.float32)
    half = error(copy.deepcopy(net).bfloat16(), torch.bfloat16)
    assert mixed < limit * half and single < 0.01 * mixed, (mixed, half, single)


def shape_of(facts: dict) -> dict:
    return {key: facts[key] for key in ("shape", "num_classes")}
