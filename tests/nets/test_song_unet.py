"""SongUNet: EDM's names and shapes, variants, refusals."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.nets.song_unet import DDPMPP, NCSNPP, SongUNet
from tests.helpers import CLASSES, shake

CIFAR = dict(model_channels=128, channel_mult=(2, 2, 2), num_blocks=4, attn_resolutions=(16,), augment_dim=9)
TINY = dict(model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
DDPM_KEYS = {
    "enc.32x32_conv.weight": (128, 3, 3, 3), "enc.32x32_conv.bias": (128,),
    "enc.32x32_block0.norm0.weight": (128,), "enc.32x32_block0.conv0.weight": (256, 128, 3, 3),
    "enc.32x32_block0.affine.weight": (256, 512), "enc.32x32_block0.affine.bias": (256,),
    "enc.32x32_block0.norm1.bias": (256,), "enc.32x32_block0.conv1.weight": (256, 256, 3, 3),
    "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
    "enc.16x16_down.conv0.weight": (256, 256, 3, 3), "enc.16x16_down.conv0.resample_filter": (1, 1, 2, 2),
    "enc.16x16_down.skip.weight": (256, 256, 1, 1), "enc.16x16_down.skip.resample_filter": (1, 1, 2, 2),
    "enc.16x16_block0.norm2.weight": (256,), "enc.16x16_block0.qkv.weight": (768, 256, 1, 1),
    "enc.16x16_block3.proj.bias": (256,), "enc.8x8_block3.conv1.bias": (256,),
    "dec.8x8_in0.qkv.bias": (768,), "dec.8x8_in0.proj.weight": (256, 256, 1, 1),
    "dec.8x8_in1.conv0.weight": (256, 256, 3, 3),
    "dec.8x8_block4.conv0.weight": (256, 512, 3, 3), "dec.16x16_up.conv0.resample_filter": (1, 1, 2, 2),
    "dec.16x16_block4.qkv.weight": (768, 256, 1, 1), "dec.32x32_block4.conv0.weight": (256, 384, 3, 3),
    "dec.32x32_aux_norm.weight": (256,), "dec.32x32_aux_conv.weight": (3, 256, 3, 3), "dec.32x32_aux_conv.bias": (3,),
    "map_layer0.weight": (512, 128), "map_layer1.weight": (512, 512), "map_augment.weight": (128, 9),
}
DDPM_ABSENT = ("map_noise.freqs", "map_label.weight", "map_augment.bias", "dec.8x8_in1.qkv.weight",
               "enc.32x32_block0.qkv.weight",
               "enc.32x32_block1.skip.weight", "dec.16x16_block3.qkv.weight", "enc.16x16_aux_residual.weight")
NCSN_KEYS = {
    "map_noise.freqs": (128,), "map_layer0.weight": (512, 256), "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
    "enc.16x16_aux_residual.resample_filter": (1, 1, 4, 4), "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
    "enc.16x16_down.conv0.resample_filter": (1, 1, 4, 4),
}


def shapes_and_size(**options) -> tuple[dict[str, tuple[int, ...]], int]:
    with torch.device("meta"):
        net = SongUNet((3, 32, 32), **CIFAR, **options)
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}, sum(p.numel() for p in net.parameters())


def test_cifar10_ddpmpp_has_edms_names_shapes_and_size():
    shapes, parameters = shapes_and_size(**DDPMPP)
    assert parameters == 55_733_891
    assert {key: shapes.get(key) for key in DDPM_KEYS} == DDPM_KEYS
    assert [key for key in DDPM_ABSENT if key in shapes] == []
    assert shapes == shapes_and_size()[0]  # DDPM++ is the default


def test_cifar10_ncsnpp_has_edms_names_and_shapes():
    shapes, _ = shapes_and_size(**NCSNPP)
    assert {key: shapes.get(key) for key in NCSN_KEYS} == NCSN_KEYS
    assert len(shapes) > 300


def test_class_conditional_net_has_a_label_layer():
    assert shapes_and_size(num_classes=10)[0]["map_label.weight"] == (128, 10)


def test_dropout_works_in_training_only():
    net = shake(SongUNet((1, 8, 8), **TINY, dropout=0.5))
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize("options", [DDPMPP, NCSNPP, dict(encoder="skip", decoder="skip"), dict(patch=2)],
                         ids=["ddpmpp", "ncsnpp", "skip", "patch"])
def test_variants_run_on_images_that_are_not_square(options):
    net = shake(SongUNet((2, 8, 16), num_classes=CLASSES, **TINY, **options)).eval()
    x, t, y = torch.randn(3, 2, 8, 16), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        out = net(x, t, y)
        assert out.shape == x.shape and bool(out.isfinite().all())
        torch.testing.assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-4)
    net(x, t, y).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_patches_keep_every_pixel():
    """With patch 2 the raw input reaches the output through pixel (un)shuffling: the folded conv sees 4 channels."""
    net = SongUNet((1, 8, 8), **TINY, patch=2)
    assert net.enc["4x4_conv"].weight.shape == (8, 4, 3, 3) and net.dec["4x4_aux_conv"].weight.shape == (4, 8, 3, 3)


def test_learned_variance_networks_may_have_more_output_channels():
    assert SongUNet((1, 8, 8), **TINY, out_channels=2)(torch.randn(1, 1, 8, 8), torch.zeros(1)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize("shape, options, words", [
    ((1, 7, 8), {}, "multiples of 2"), ((1, 8, 9), {}, "multiples of 2"), ((1, 8, 6), {"patch": 2}, "multiples of 4"),
    ((64,), {}, "use mlp"), ((1, 8, 8), {"model_channels": 9}, "groups"), ((1, 8, 8), {"embedding": "cosine"}, "positional"),
    ((1, 8, 8), {"encoder": "resnet"}, "standard"), ((1, 8, 8), {"decoder": "resnet"}, "standard")])
def test_impossible_networks_are_refused(shape, options, words):
    with pytest.raises(PidistillError, match=words):
        SongUNet(shape, **TINY | options)
