"""The decoder of a latent space: diffusers' AutoencoderKL without its encoder, which a student has no use for."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class LatentDecoder(ModelMixin, ConfigMixin):
    """The decoder maps latents (B, c, h, w) of unit scale to images (B, C, H, W), about in [-1, 1].

    config: of the AutoencoderKL.
    """

    @register_to_config
    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.vae = AutoencoderKL.from_config(config)
        self.vae.encoder = self.vae.quant_conv = None

    def forward(self, x: Tensor) -> Tensor:
        config = self.vae.config
        x = x / (config.scaling_factor or 1) + (config.shift_factor or 0)
        return self.vae.decode(x.to(self.dtype), return_dict=False)[0].float()
