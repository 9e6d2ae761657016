"""EDM2UNet: names and shapes, magnitudes, forced normalisation in training, precision, options, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.models.student_init import make_student
from pidistill.nets.edm2_unet import EDM2Block, EDM2UNet, MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from tests.helpers import CLASSES, SHAPE, pid_of, shake, start, tiny_teacher

TINY = dict(model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), head_channels=8)
KEYS = {
    "out_gain": (), "emb_fourier.freqs": (192,), "emb_fourier.phases": (192,), "emb_noise.weight": (768, 192),
    "emb_label.weight": (768, 1000), "enc.64x64_conv.weight": (192, 4, 3, 3),
    "enc.64x64_block0.emb_gain": (), "enc.64x64_block0.emb_linear.weight": (192, 768),
    "enc.64x64_block2.conv_res1.weight": (192, 192, 3, 3), "enc.32x32_down.conv_res0.weight": (192, 192, 3, 3),
    "enc.32x32_block0.conv_skip.weight": (384, 192, 1, 1), "enc.32x32_block0.conv_res0.weight": (384, 384, 3, 3),
    "enc.16x16_block0.attn_qkv.weight": (1728, 576, 1, 1), "enc.8x8_block2.attn_proj.weight": (768, 768, 1, 1),
    "dec.8x8_in0.attn_qkv.weight": (2304, 768, 1, 1), "dec.8x8_in1.conv_res0.weight": (768, 768, 3, 3),
    "dec.8x8_block0.conv_res0.weight": (768, 1536, 3, 3), "dec.8x8_block3.conv_skip.weight": (768, 768 + 576, 1, 1),
    "dec.16x16_up.conv_res0.weight": (768, 768, 3, 3), "dec.16x16_block3.attn_qkv.weight": (1728, 576, 1, 1),
    "dec.64x64_block3.conv_skip.weight": (192, 384, 1, 1), "out_conv.weight": (3, 192, 3, 3),
}
ABSENT = ("enc.64x64_block0.conv_skip.weight", "enc.32x32_block0.attn_qkv.weight", "dec.8x8_in1.attn_qkv.weight",
          "enc.32x32_down.conv_skip.weight", "dec.16x16_up.attn_qkv.weight", "dec.8x8_in0.conv_skip.weight",
          "enc.32x32_down.resample_filter", "emb_noise.bias")


def tiny(classes: int = CLASSES, **options) -> EDM2UNet:
    """Random weights, and gains that are not zero."""
    torch.manual_seed(0)
    return shake(EDM2UNet((1, 8, 8), num_classes=classes, **TINY | options), scale=0.3).eval()


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return start((1, 8, 8), batch, 1.0, torch.float32), torch.linspace(-1.5, 1.1, batch), torch.arange(batch) % CLASSES


def magnitudes(net: nn.Module) -> torch.Tensor:
    """Root mean squares of all rows of all weights."""
    return torch.cat([m.weight.detach().flatten(1).square().mean(1).sqrt() for m in net.modules() if isinstance(m, MPConv)])


def test_imagenet64_s_has_edm2s_names_and_shapes():
    with torch.device("meta"):
        net = EDM2UNet((3, 64, 64), num_classes=1000)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert {key: shapes.get(key) for key in KEYS} == KEYS and len(shapes) == 200
    assert [key for key in ABSENT if key in shapes] == []
    assert {module.heads for module in net.modules() if hasattr(module, "heads")} == {9, 12}


# magnitudes ----------------------------------------------------------------------------------------------------------


def test_every_operation_keeps_the_magnitude_of_unit_normal_input():
    torch.manual_seed(0)
    x, y = torch.randn(64, 24, 16, 16), torch.randn(64, 8, 16, 16)
    rms = lambda a: a.square().mean().sqrt().item()
    assert rms(mp_silu(x)) == pytest.approx(1, abs=0.01)
    assert rms(mp_sum(x, torch.randn_like(x), 0.3)) == pytest.approx(1, abs=0.01)
    joined = mp_cat(x, y, 0.5)
    assert rms(joined) == pytest.approx(1, abs=0.01)
    assert rms(joined[:, :24]) ** 2 * 24 == pytest.approx(rms(joined[:, 24:]) ** 2 * 8, rel=0.02)  # both count the same
    uneven = mp_cat(x, y, 0.25)
    assert rms(uneven[:, :24]) ** 2 * 24 == pytest.approx(9 * rms(uneven[:, 24:]) ** 2 * 8, rel=0.02)
    layer = MPConv(24, 512)
    layer.weight.data *= torch.rand(512, 1) * 10  # whatever the weights' scale
    assert rms(layer(torch.randn(512, 24))) == pytest.approx(1, abs=0.02)
    assert rms(layer(torch.randn(512, 24), gain=0.5)) == pytest.approx(0.5, abs=0.01)
    assert rms(MPFourier(4096)(torch.linspace(-1, 1, 8))) == pytest.approx(1, abs=0.02)


def test_activations_stay_near_one_through_the_network():
    net, seen = tiny(model_channels=32, head_channels=32, channel_mult=(1, 2, 2)), []
    for module in net.modules():
        if isinstance(module, EDM2Block):
            module.emb_gain.data.fill_(0.3)
            module.register_forward_hook(lambda module, args, out: seen.append(out.square().mean().sqrt().item()))
    net(*inputs())
    assert len(seen) == 15 and min(seen) > 0.6 and max(seen) < 1.6


def test_function_does_not_depend_on_the_weights_scale():
    net, x = tiny(), inputs()
    with torch.no_grad():
        before = net(*x)
        for module in net.modules():
            if isinstance(module, MPConv):
                module.weight *= 3
        torch.testing.assert_close(net(*x), before, rtol=1e-2, atol=1e-3)  # EPS is relative to the magnitude


# forced normalisation --------------------------------------------------------------------------------------------------


def test_training_normalises_the_weights_and_evaluation_leaves_them():
    net, x = tiny(), inputs()
    before = magnitudes(net)
    out = net(*x)
    assert torch.equal(magnitudes(net), before) and (before - 1).abs().max() > 0.1
    trained = net.train()(*x)
    torch.testing.assert_close(magnitudes(net), torch.ones_like(before), rtol=0, atol=1e-3)
    torch.testing.assert_close(trained, out, rtol=5e-3, atol=5e-3)


def test_weights_change_once_for_each_change_of_them():
    """Microbatches and several calls in one graph: the second pass must not touch what the first one's graph holds."""
    net, x = tiny().train(), inputs()
    first = net(*x)
    versions = [p._version for p in net.parameters()]
    second = net(*x)
    assert torch.equal(first, second) and [p._version for p in net.parameters()] == versions
    (first.square().sum() + second.square().sum()).backward()
    both = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for _ in range(2):
        net(*x).square().sum().backward()
    for p, grad in zip(net.parameters(), both, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert (magnitudes(net) - 1).abs().max() > 1e-2
    net(*x)
    assert (magnitudes(net) - 1).abs().max() < 1e-3


def test_copies_are_on_their_own():
    net, x = tiny().train(), inputs()
    net(*x)
    average = copy.deepcopy(net).eval()
    with torch.no_grad():
        for p in average.parameters():
            p *= 0.5
    average(*x)
    assert magnitudes(average).max() < 0.51 and magnitudes(net).min() > 0.99  # evaluation changes neither
    average.train()(*x)
    assert magnitudes(average).min() > 0.99


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, inside jvp
@pytest.mark.parametrize("transform", ["jvp", "grad"])
def test_function_transforms_normalise_as_plain_calls_do(transform):
    """torch.func refuses changes of captured tensors; the normalisation happens outside of the transform."""
    net, (x, t, y) = tiny().train(), inputs()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if transform == "jvp":
            out, slope = torch.func.jvp(lambda u: net(x, u, y), (t,), (torch.ones_like(t),))
            slope.square().sum().backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.enc.parameters())
            h = 1e-3
            torch.testing.assert_close(slope, (net(x, t + h, y) - net(x, t - h, y)) / (2 * h), rtol=0.02, atol=0.02)
            torch.testing.assert_close(out, net(x, t, y), rtol=1e-5, atol=1e-5)  # other kernels, the same function
        else:
            torch.func.grad(lambda u: net(x, u, y).sum())(t)
    assert (magnitudes(net) - 1).abs().max() < 1e-3


def test_functional_call_leaves_foreign_weights_alone():
    net, x = tiny().train(), inputs()
    state = {key: 2 * value.detach() for key, value in net.named_parameters()}
    before = {key: value.clone() for key, value in state.items()}
    own_magnitudes = magnitudes(net)
    with torch.no_grad():
        torch.func.functional_call(net, state, x)
    assert all(torch.equal(state[key], before[key]) for key in state) and torch.equal(magnitudes(net), own_magnitudes)


@pytest.mark.parametrize("scheme", ["upwind", "autodiff"])
def test_a_student_of_it_trains(scheme):
    teacher = tiny_teacher({"name": "edm2_unet", **TINY, "dropout": 0.5})
    student = make_student(teacher).train()
    assert student.net_spec["dropout"] == 0.0
    batch = {"z": start(SHAPE, 4, dtype=torch.float32), "i": torch.arange(4) * 2, "labels": torch.arange(4) % CLASSES}
    objective = pid_of(student, teacher, 10, scheme=scheme)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = objective.loss(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        assert (magnitudes(student) - 1).abs().max() < 1e-3
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# labels, options, precision --------------------------------------------------------------------------------------------


def test_no_label_is_a_row_of_zeros():
    """mp_sum with a zero branch: the noise embedding times 1/sqrt(2)."""
    net, (_, t, y) = tiny(), inputs()
    noise = net.emb_noise(net.emb_fourier(t))
    torch.testing.assert_close(net.embed(t, None), mp_silu(noise * math.sqrt(0.5)))
    both = (noise + net.emb_label(torch.eye(CLASSES)[y] * math.sqrt(CLASSES))) * math.sqrt(0.5)
    torch.testing.assert_close(net.embed(t, y), mp_silu(both))


@pytest.mark.parametrize("option, value", [
    ("resample_filter", (1, 3, 3, 1)), ("label_balance", 0.3), ("concat_balance", 0.6), ("res_balance", 0.5),
    ("attn_balance", 0.6), ("clip_act", 0.5), ("head_channels", 4)])
def test_options_change_the_function(option, value):
    net, other, x = tiny(), tiny(**{option: value}), inputs()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert (net(*x) - other(*x)).abs().max() > 1e-3


def test_embedding_widths_are_options():
    net = tiny(channel_mult_noise=2, channel_mult_emb=3)
    assert net.emb_noise.weight.shape == (24, 16) and tiny().emb_noise.weight.shape == (16, 8)


def test_activations_may_be_left_unclipped():
    net, free, x = tiny(clip_act=0.5), tiny(clip_act=None), inputs()
    largest = []
    for model in (net, free):
        model.dec["8x8_block1"].register_forward_hook(lambda module, args, out: largest.append(out.abs().max().item()))
        model(*x)
    assert largest[0] == 0.5 and largest[1] > 0.5


def test_dropout_works_in_training_only():
    net, x = tiny(dropout=0.5).train(), inputs()
    assert not torch.equal(net(*x), net(*x))
    net.eval()
    assert torch.equal(net(*x), net(*x))


@torch.no_grad()
def test_autocast_leaves_embedding_and_last_layer_alone():
    net, x = tiny(), inputs()
    seen = []
    net.emb_noise.register_forward_hook(lambda module, args, out: seen.append(out))
    net.dec["4x4_in0"].conv_res1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    net.out_conv.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    plain = net(*x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = net(*x)
    assert cast.dtype == torch.float32 and 0 < (cast - plain).abs().max() < 0.1 * plain.std()
    assert torch.equal(seen[0], seen[3])
    assert (seen[1:3], seen[4:6]) == ([torch.float32] * 2, [torch.bfloat16, torch.float32])


@torch.no_grad()
def test_every_float_type_keeps_its_own():
    net, (x, t, y) = tiny(), inputs()
    plain = net(x, t, y)
    for dtype, atol in ((torch.float64, 1e-5), (torch.bfloat16, 0.2)):
        out = copy.deepcopy(net).to(dtype)(x.to(dtype), t.to(dtype), y)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), plain, rtol=0, atol=atol)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.double()(x.double(), t.double(), y).dtype == torch.float64


def test_images_need_not_be_square():
    torch.manual_seed(0)
    net = shake(EDM2UNet((2, 8, 16), num_classes=CLASSES, **TINY)).eval()
    x, t, y = torch.randn(3, 2, 8, 16), torch.tensor([-1.0, 0.0, 1.0]), torch.arange(3)
    with torch.no_grad():
        assert net(x, t, y).shape == x.shape


@pytest.mark.parametrize("shape, options, words", [
    ((1, 7, 8), {}, "edm2_unet: .* multiples of 2"), ((64,), {}, "use mlp"),
    ((1, 8, 8), {"head_channels": 0}, "1 or more"), ((1, 8, 8), {"model_channels": 0}, "1 or more"),
    ((1, 8, 8), {"model_channels": 10, "head_channels": 6}, "3 attention heads"),
    ((1, 8, 8), {"resample_filter": (1, 2, 1)}, "even number")])
def test_impossible_networks_are_refused(shape, options, words):
    with pytest.raises(PidistillError, match=words) as caught:
        EDM2UNet(shape, **TINY | options)
    assert "\n" not in str(caught.value)
