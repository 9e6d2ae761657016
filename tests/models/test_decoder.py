"""Latents become images through diffusers' autoencoder; a tiny random one, nothing is downloaded."""

from __future__ import annotations

import copy

import pytest
import torch

from pidistill.files.folders import write_folder
from pidistill.models.decoder import Decoder, read_decoder

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8),
                                  down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                                  norm_num_groups=4, sample_size=16, scaling_factor=0.3, shift_factor=0.1)
    return Decoder({"config": dict(vae.config)}, vae)


def test_latents_are_scaled_shifted_and_decoded(decoder):
    x = torch.randn(2, 4, 4, 6)
    with torch.no_grad():
        expected = decoder.vae.decode(x / 0.3 + 0.1).sample
    assert torch.equal(decoder(x), expected) and expected.shape == (2, *decoder.image_shape((4, 4, 6))) == (2, 3, 16, 24)


def test_the_decoder_is_shared_and_never_trained(decoder):
    assert copy.deepcopy(decoder) is decoder and not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())
    assert not any(name.startswith(("vae.encoder", "vae.quant_conv")) for name in decoder.state_dict())


def test_a_folder_keeps_the_decoder(decoder, tmp_path):
    write_folder(tmp_path / "m", {"decoder": decoder.state_dict()}, {"config": {}})
    read, x = read_decoder({"decoder": decoder.spec}, tmp_path / "m"), torch.randn(1, 4, 4, 4)
    assert torch.equal(read(x), decoder(x)) and read.spec == decoder.spec
    assert read_decoder({}, tmp_path / "m") is None
