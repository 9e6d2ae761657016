"""Keys of diffusers' configurations: each is read, changes nothing here, or may have only some values.

A key that is skipped in silence may change what a network means. The tables name every key of the accepted classes;
tests/nets/test_diffusers_keys.py holds them against the signatures of the installed diffusers, so that a new key fails it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pidistill.core.errors import PidistillError


@dataclass(frozen=True)
class Only:
    """A key may have only these values.

    values: that are understood. why: others are not, as part of a sentence.
    """

    values: tuple[Any, ...]
    why: str


Rule = Literal["read", "harmless"] | Only  # read: here or by diffusers' own class; harmless: no value changes D


def check_keys(what: str, config: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """Refuse a value that is not understood, by its key's name, and give the keys that no rule names (but null ones).

    what: whose configuration it is, for the error.
    """
    for key, value in config.items():
        rule = rules.get(key)
        if isinstance(rule, Only) and (type(value), value) not in [(type(v), v) for v in (*rule.values, None)]:
            allowed = " or ".join(map(json.dumps, (*rule.values, None)))
            raise PidistillError(f"{what}: {key}={str(value)[:60]} is not understood ({rule.why}); it must be {allowed}")
    return [key for key, value in config.items() if key not in rules and value is not None and not key.startswith("_")]


def read_defaults(member: Any) -> dict[str, Any]:
    """Read the keys that a class of diffusers takes and that have a default, with it."""
    return {key: p.default for key, p in inspect.signature(member.__init__).parameters.items() if p.default is not p.empty}


def _name(rule: Rule, *keys: str) -> dict[str, Rule]:
    """Give several keys one rule."""
    return dict.fromkeys(keys, rule)


# What diffusers' EMAModel adds to the configuration of a network that it saves.
_AVERAGE = _name("harmless", "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step",
                 "use_ema_warmup")

# The classes themselves read what is called read here: they are built of it.
NETWORK_KEYS: dict[str, dict[str, Rule]] = {
    "UNet2DModel": _AVERAGE | _name(
        "read", "sample_size", "in_channels", "out_channels", "center_input_sample", "time_embedding_type",
        "time_embedding_dim", "freq_shift", "flip_sin_to_cos", "down_block_types", "mid_block_type", "up_block_types",
        "block_out_channels", "layers_per_block", "mid_block_scale_factor", "downsample_padding", "downsample_type",
        "upsample_type", "dropout", "act_fn", "attention_head_dim", "norm_num_groups", "attn_norm_num_groups", "norm_eps",
        "resnet_time_scale_shift", "add_attention", "num_class_embeds", "num_train_timesteps") | {
        "class_embed_type": Only((), "its class_labels are numbers or vectors, no classes"),
        "num_embeds_ada_norm": Only((), "it is a key of transformers")},
    "DiTTransformer2DModel": _AVERAGE | _name(
        "read", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "dropout",
        "attention_bias", "sample_size", "patch_size", "activation_fn", "num_embeds_ada_norm", "upcast_attention",
        "norm_elementwise_affine", "norm_eps") | _name("harmless", "norm_num_groups") | {  # of the layers that a DiT lacks
        "norm_type": Only(("ada_norm_zero",), "a DiT has no other"),
        # Keys of Transformer2DModel, as a DiT was called before diffusers 0.29.
        "cross_attention_dim": Only((), "a DiT has no cross attention"),
        "caption_channels": Only((), "a DiT reads no captions"),
        "num_vector_embeds": Only((), "a DiT has no codebook"),
        "use_additional_conditions": Only((False,), "a DiT has no other conditions"),
        "interpolation_scale": Only((), "a DiT's positions are not scaled"),
        "attention_type": Only(("default",), "a DiT has no other"),
        "use_linear_projection": Only((False,), "a DiT has none"),
        "only_cross_attention": Only((False,), "a DiT has none"),
        "double_self_attention": Only((False,), "a DiT has none"),
        "num_class_embeds": Only((), "it is a key of UNets")},
    "AutoencoderKL": _AVERAGE | _name(
        "read", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
        "layers_per_block", "act_fn", "latent_channels", "norm_num_groups", "scaling_factor", "shift_factor",
        "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention") | _name(
        "harmless", "sample_size", "force_upcast") | {  # of tiles, and of float16: decoding is whole, in float32
        "latents_mean": Only((), "pipelines differ in whether they add it"),
        "latents_std": Only((), "pipelines differ in whether they multiply by it")},
}
