"""Every key of the installed diffusers' networks is in the tables, and what they call read makes another network."""

from __future__ import annotations

import inspect

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.nets._diffusers_keys import NETWORK_KEYS, Only, check_keys, read_defaults
from pidistill.nets.diffusers_net import build_from_diffusers

diffusers = pytest.importorskip("diffusers")
BASE = {
    "UNet2DModel": {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16],
                    "layers_per_block": 1, "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
                    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]},
    "DiTTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8,
                              "num_layers": 1, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 5},
    "AutoencoderKL": {"block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 4,
                      "up_block_types": ["UpDecoderBlock2D"] * 2, "sample_size": 16}}
# By key, another value than the base's or the default, as a file might have it.
OTHER = {
    "UNet2DModel": {
        "sample_size": 16, "in_channels": 2, "out_channels": 2, "center_input_sample": True,
        "time_embedding_type": "fourier", "time_embedding_dim": 24, "freq_shift": 1, "flip_sin_to_cos": False,
        "mid_block_type": None, "layers_per_block": 2,
        "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "block_out_channels": [8, 24],
        "mid_block_scale_factor": 2.0, "downsample_padding": 0, "downsample_type": "resnet", "upsample_type": "resnet",
        "dropout": 0.3, "act_fn": "gelu", "attention_head_dim": 4, "norm_num_groups": 8, "attn_norm_num_groups": 2,
        "norm_eps": 0.1, "resnet_time_scale_shift": "scale_shift", "add_attention": False, "num_class_embeds": 3,
        "num_train_timesteps": 10},
    "DiTTransformer2DModel": {
        "num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "num_layers": 2,
        "dropout": 0.3, "attention_bias": False, "sample_size": 4, "patch_size": 4, "activation_fn": "gelu",
        "num_embeds_ada_norm": 7,
        "upcast_attention": True, "norm_elementwise_affine": True, "norm_eps": 0.1},
    "AutoencoderKL": {
        "in_channels": 1, "out_channels": 1, "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], "block_out_channels": [8, 16], "layers_per_block": 2,
        "act_fn": "gelu", "latent_channels": 2, "norm_num_groups": 2, "scaling_factor": 0.5, "shift_factor": 0.1,
        "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}}
OLD = {"DiTTransformer2DModel": "Transformer2DModel"}  # the class whose configurations are read as this one's too
CASES = [(kind, key) for kind, keys in NETWORK_KEYS.items() for key in keys]


def taken(kind: str) -> set[str]:
    return {*inspect.signature(getattr(diffusers, kind).__init__).parameters} - {"self"}


@pytest.mark.parametrize("kind", NETWORK_KEYS)
def test_every_key_of_the_class_is_in_its_table(kind):
    """A new key of a later diffusers fails here, and not a user. Defaults are never refused."""
    assert taken(kind) | (taken(OLD[kind]) if kind in OLD else set()) <= NETWORK_KEYS[kind].keys()
    assert check_keys(kind, read_defaults(getattr(diffusers, kind)), NETWORK_KEYS[kind]) == []
    assert {key for key, rule in NETWORK_KEYS[kind].items() if rule == "read"} <= taken(kind)
    assert OTHER[kind].keys() == {key for key, rule in NETWORK_KEYS[kind].items() if rule == "read"}


@pytest.mark.parametrize("kind, key", [case for case in CASES if NETWORK_KEYS[case[0]][case[1]] == "read"],
                         ids=lambda value: value)
def test_what_is_called_read_reaches_the_class(kind, key):
    """The network has the value in its own config, from which diffusers computes."""
    options = BASE[kind] | {key: OTHER[kind][key]}
    network = build_from_diffusers(kind, options)
    value = network.config[key]
    assert (list(value) if isinstance(value, tuple) else value) == OTHER[kind][key]
    assert OTHER[kind][key] != (read_defaults(getattr(diffusers, kind)) | BASE[kind]).get(key)


def others(rule: Only) -> list:
    return [value for value in (True, False, 3, 1.5, "timestep", "layer_norm", [0.5], {}) if value not in rule.values]


@pytest.mark.parametrize("kind, key", [case for case in CASES if isinstance(NETWORK_KEYS[case[0]][case[1]], Only)],
                         ids=lambda value: value)
def test_other_values_than_the_understood_are_refused_by_name(kind, key):
    rule = NETWORK_KEYS[kind][key]
    for value in others(rule):
        with pytest.raises(PidistillError, match=rf"diffusers' {kind}: {key}=.* is not understood") as error:
            build_from_diffusers(kind, BASE[kind] | {key: value})
        assert "null" in str(error.value) and rule.why in str(error.value)
    for value in rule.values:
        build_from_diffusers(kind, BASE[kind] | {key: value})


@pytest.mark.parametrize("kind, key", [case for case in CASES if NETWORK_KEYS[case[0]][case[1]] == "harmless"],
                         ids=lambda value: value)
@torch.no_grad()
def test_what_is_called_harmless_changes_no_output(kind, key):
    network, other = (build_from_diffusers(kind, BASE[kind] | more) for more in ({}, {key: 8}))
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 1 if kind == "UNet2DModel" else 4, 8, 8)
    if kind == "AutoencoderKL":
        assert torch.equal(network.eval().decode(x).sample, other.eval().decode(x).sample)
    else:
        labels = {"class_labels": torch.tensor([1, 2])} if kind.startswith("DiT") else {}
        t = torch.tensor([3, 500])
        assert torch.equal(network.eval()(x, t, **labels).sample, other.eval()(x, t, **labels).sample)


def test_unknown_keys_are_given_back_but_for_null_and_private_ones():
    config = {"_class_name": "UNet2DModel", "an_option_of_tomorrow": 3, "another": None, "sample_size": 8}
    assert check_keys("a network", config, NETWORK_KEYS["UNet2DModel"]) == ["an_option_of_tomorrow"]
