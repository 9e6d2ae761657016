"""DhariwalUNet: EDM's names, shapes and size, the first weights, embedding, options, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.models.student_init import make_student
from pidistill.nets.dhariwal_unet import DhariwalUNet
from tests.helpers import CLASSES, shake, tiny_teacher

TINY = dict(model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), head_channels=8, dropout=0.0)
KEYS = {
    "enc.64x64_conv.weight": (192, 3, 3, 3), "enc.64x64_block0.affine.weight": (384, 768),
    "enc.64x64_block0.norm0.weight": (192,), "enc.64x64_block0.conv1.bias": (192,),
    "enc.32x32_down.conv0.weight": (192, 192, 3, 3), "enc.32x32_down.conv0.resample_filter": (1, 1, 2, 2),
    "enc.32x32_down.skip.resample_filter": (1, 1, 2, 2),
    "enc.32x32_block0.skip.weight": (384, 192, 1, 1), "enc.32x32_block0.qkv.weight": (1152, 384, 1, 1),
    "enc.16x16_block2.norm2.weight": (576,), "enc.8x8_block0.proj.weight": (768, 768, 1, 1),
    "dec.8x8_in0.qkv.bias": (2304,), "dec.8x8_in1.conv0.weight": (768, 768, 3, 3),
    "dec.8x8_block0.conv0.weight": (768, 1536, 3, 3), "dec.8x8_block0.qkv.weight": (2304, 768, 1, 1),
    "dec.8x8_block3.conv0.weight": (768, 768 + 576, 3, 3), "dec.16x16_up.skip.resample_filter": (1, 1, 2, 2),
    "dec.16x16_block0.conv0.weight": (576, 768 + 576, 3, 3), "dec.32x32_block2.qkv.weight": (1152, 384, 1, 1),
    "dec.64x64_block3.conv0.weight": (192, 384, 3, 3), "dec.64x64_block3.skip.bias": (192,),
    "map_layer0.weight": (768, 192), "map_layer1.bias": (768,), "map_label.weight": (768, 1000),
    "out_norm.weight": (192,), "out_conv.weight": (3, 192, 3, 3), "out_conv.bias": (3,),
}
ABSENT = ("map_label.bias", "map_augment.weight", "map_noise.freqs", "enc.32x32_down.skip.weight",
          "dec.16x16_up.skip.weight", "enc.64x64_block0.qkv.weight", "enc.64x64_block0.skip.weight",
          "dec.8x8_in1.qkv.weight", "dec.64x64_block0.qkv.weight", "enc.32x32_down.qkv.weight")


def test_imagenet64_has_edms_names_shapes_and_size():
    with torch.device("meta"):
        net = DhariwalUNet((3, 64, 64), num_classes=1000)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert {key: shapes.get(key) for key in KEYS} == KEYS
    assert [key for key in ABSENT if key in shapes] == []
    assert sum(p.numel() for p in net.parameters()) == 295_899_267  # published: 296 million
    assert {module.dropout for module in net.modules() if hasattr(module, "dropout")} == {0.1}
    assert {module.heads for module in net.modules() if hasattr(module, "heads")} == {6, 9, 12}


def test_augmentation_layer_has_edms_name():
    weight = DhariwalUNet((1, 8, 8), **TINY, augment_dim=9).state_dict()["map_augment.weight"]
    assert weight.shape == (8, 9) and not weight.any()


def test_embedding_is_classes_after_the_second_layer():
    """silu(layer1(silu(layer0(cos, sin))) + one-hot without a factor), written out."""
    net = shake(DhariwalUNet((1, 8, 8), num_classes=CLASSES, **TINY), scale=0.3).double()
    t, y = torch.tensor([-1.3, 0.4], dtype=torch.float64), torch.tensor([2, 0])
    phase = t[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    h = torch.cat([phase.cos(), phase.sin()], 1)
    h = F.silu(h @ net.map_layer0.weight.T + net.map_layer0.bias) @ net.map_layer1.weight.T + net.map_layer1.bias
    torch.testing.assert_close(net.embed(t, y), F.silu(h + net.map_label.weight[:, y].T), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.embed(t, None), F.silu(h), rtol=1e-5, atol=1e-6)


def test_starts_at_zero_output_with_bias_uniform_weights():
    net = DhariwalUNet((1, 8, 8), num_classes=CLASSES, **TINY)
    assert not net(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.arange(2)).any()
    for layer, fan_in in ((net.map_layer1, 32), (net.enc["8x8_block0"].conv0, 72), (net.dec["4x4_in0"].qkv, 16)):
        for p in (layer.weight, layer.bias):
            assert 0.8 / math.sqrt(fan_in) < p.abs().max() <= 1 / math.sqrt(fan_in)
    assert net.map_label.weight.std().item() == pytest.approx(1, abs=0.25)


def test_number_of_heads_changes_the_function():
    wide, narrow = (shake(DhariwalUNet((1, 8, 8), **TINY | {"head_channels": n}), scale=0.3).eval() for n in (64, 4))
    narrow.load_state_dict(wide.state_dict())
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.allclose(wide(x, t), narrow(x, t), atol=1e-4)


def test_dropout_works_in_training_only_and_a_student_has_none():
    net = shake(DhariwalUNet((1, 8, 8), **TINY | {"dropout": 0.5}))
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))
    student = make_student(tiny_teacher({"name": "dhariwal_unet", **TINY, "dropout": 0.5})).train()
    assert student.net_spec["dropout"] == 0.0 and torch.equal(student.net(x, t), student.net(x, t))


def test_images_need_not_be_square():
    net = shake(DhariwalUNet((2, 8, 16), num_classes=CLASSES, **TINY)).eval()
    x, t, y = torch.randn(3, 2, 8, 16), torch.tensor([-1.0, 0.0, 1.0]), torch.arange(3)
    with torch.no_grad():
        out = net(x, t, y)
        assert out.shape == x.shape
        torch.testing.assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape, options, words", [
    ((1, 7, 8), {}, "dhariwal_unet: .* multiples of 2"), ((1, 8, 9), {}, "multiples of 2"), ((64,), {}, "use mlp"),
    ((1, 8, 8), {"model_channels": 14}, "groups"), ((1, 8, 8), {"model_channels": 28, "head_channels": 16}, "heads"),
    ((1, 8, 8), {"head_channels": -1}, "head_channels"), ((1, 8, 8), {"model_channels": 5}, "even")])
def test_impossible_networks_are_refused(shape, options, words):
    with pytest.raises(PidistillError, match=words) as caught:
        DhariwalUNet(shape, **TINY | options)
    assert "\n" not in str(caught.value)
