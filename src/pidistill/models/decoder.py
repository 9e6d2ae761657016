"""The decoder D of a latent space turns latents into images: x = D(latent / scale + shift).

A teacher in a latent space, and its student, end with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.core.foreign import call_foreign
from pidistill.files.weights import Allowance, count_allowed_elements, load_weights, read_tensors
from pidistill.nets.diffusers_net import build_from_diffusers


class Decoder(nn.Module):
    """diffusers' AutoencoderKL maps latents (B, c, h, w) of unit scale to images (B, C, H, W), about in [-1, 1].

    It is never trained, and copies of a model share it.

    spec: {"config": ...} of the VAE, which says how latents are scaled; what it leaves out is diffusers' default.
    vae: the network; None makes one with random weights.
    """

    def __init__(self, spec: dict[str, Any], vae: nn.Module | None = None):
        super().__init__()
        self.spec, config = spec, spec["config"]
        self.vae: Any = vae or build_from_diffusers("AutoencoderKL", config)
        for name in ("encoder", "quant_conv"):  # never used here
            if getattr(self.vae, name, None) is not None:
                setattr(self.vae, name, None)
        complete: Any = self.vae.config  # with diffusers' defaults
        self.scale, self.shift = complete.get("scaling_factor") or 1.0, complete.get("shift_factor") or 0.0
        self.eval().requires_grad_(False)

    def image_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Give the shape (C, H, W) of the images that latents of a shape (c, h, w) become."""
        config = self.vae.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        return (config.out_channels, *(factor * side for side in shape[1:]))

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        return self

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        p = next(self.vae.parameters())
        decode = lambda x: self.vae.decode((x / self.scale + self.shift).to(p.device, p.dtype), return_dict=False)[0]
        return call_foreign(decode, f"the decoder {type(self.vae).__name__}", x).to(x.dtype)


def read_decoder(config: dict[str, Any], folder: Path) -> Decoder | None:
    """Read the decoder of a student's or a teacher's folder; None if its config.json has none."""
    if "decoder" not in config:
        return None
    path = folder / "decoder.safetensors"
    with Allowance(count_allowed_elements(path), path):
        decoder = Decoder(config["decoder"])
    load_weights(decoder, read_tensors(path), path)
    return decoder
