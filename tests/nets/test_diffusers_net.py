"""Networks of diffusers as raw networks: what is handed on to them, and which configurations are refused."""

from __future__ import annotations

import sys

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.nets.diffusers_net import DiffusersNet, build_from_diffusers
from tests.helpers import shake

pytest.importorskip("diffusers")
UNET = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1,
       "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 5}


def inputs(channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, channels, 8, 8), torch.tensor([1.0, 30.0, 900.0])


def net_of(config: dict, **options) -> DiffusersNet:
    torch.manual_seed(0)
    return shake(DiffusersNet((1, 8, 8), config=config, **options)).eval()


@torch.no_grad()
def test_output_is_the_model_s_own():
    net, (x, t) = net_of(UNET), inputs()
    assert torch.equal(net(x, t), net.net(x, t).sample)
    assert torch.equal(net(x, t[:1]), net.net(x, t[:1].expand(3)).sample)  # one time for all
    assert all(name.startswith("net.") for name in net.state_dict())


@torch.no_grad()
def test_a_network_of_images_in_0_1_is_given_them():
    (x, t), plain, shifted = inputs(), net_of(UNET), net_of(UNET, unit_range=True)
    torch.testing.assert_close(shifted(x, t), plain((x + 1) / 2, t))


@torch.no_grad()
def test_classes_reach_the_network_and_without_them_it_gets_the_first():
    net, (x, t) = net_of(UNET | {"num_class_embeds": 4}, num_classes=4), inputs()
    first, other = (net(x, t, torch.full((3,), k)) for k in (0, 2))
    assert torch.equal(net(x, t), first) and not torch.equal(other, first)


@torch.no_grad()
def test_transformers_may_give_a_variance_too():
    net, (x, t) = net_of(DIT, kind="DiTTransformer2DModel", num_classes=4), inputs(4)
    assert net(x, t, torch.arange(3)).shape == (3, 8, 8, 8)


def test_weights_that_diffusers_does_not_train_are_known():
    assert net_of(UNET).frozen == frozenset()
    frozen = net_of(UNET | {"time_embedding_type": "fourier"}).frozen
    assert frozen == {"net.time_proj.weight"}


def test_keys_that_the_class_does_not_know_are_left_out():
    """config.json says which version of diffusers wrote it, and versions differ in what they know."""
    net = net_of(UNET | {"_class_name": "UNet2DModel", "an_option_of_tomorrow": 3})
    assert net.state_dict().keys() == net_of(UNET).state_dict().keys()


@pytest.mark.parametrize("kind, config", [("UNet2DModel", UNET | {"down_block_types": ["NoSuchBlock"] * 2}),
                                          ("UNet2DModel", UNET | {"block_out_channels": "wide"}),
                                          ("DiTTransformer2DModel", DIT | {"num_layers": None})])
def test_impossible_configurations_are_refused(kind, config):
    with pytest.raises(PidistillError, match=f"diffusers' {kind} cannot be built: .*Error"):
        build_from_diffusers(kind, config)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(PidistillError, match=r"not installed: pip install 'pidistill\[diffusers\]'"):
        build_from_diffusers("UNet2DModel", UNET)
