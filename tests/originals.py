"""What tools/record_originals.py runs on NVIDIA's EDM and EDM2 code, and the tests on ours: networks, weights, inputs.

Weights and inputs are not stored: `unit` makes them from their names, the same in both. Stored are only outputs and
constants, in tests/fixtures/originals.safetensors:

    nets/NET/CASE               (3, 2, 8, 8)  F(x, C_NOISE, labels), in evaluation mode
    nets/edm2/training/...                    `F` in training mode, and of its first convolution the `weight` after the
                                              forward pass and the `grad` of F's sum of squares
    preconds/sigma              (S,)          noise levels of everything below
    preconds/CLASS/CASE         (S, 1, 8, 8)  D(x, sigma, labels) with one sigma a row, around the network PRECOND_NET
    preconds/CLASS/c_noise      (S,)          what the network was given
    preconds/CLASS/round_sigma  (S,)          the original's own rounding, which D does not apply to x and sigma
    preconds/iDDPMPrecond/u     (1001,)       its table of noise levels, descending
    metadata                                  `commits` of the originals, `torch`, and `facts`: by CLASS, the noise range
                                              and the constants of its constructor (null: infinite); all are JSON
CASE is `uncond` (no classes), `cond` (LABELS) or `none` (the conditional network without labels).
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FIXTURE = Path(__file__).parent / "fixtures" / "originals.safetensors"
CASES, CLASSES = ("uncond", "cond", "none"), 3
SHAPE, PRECOND_SHAPE = (2, 8, 8), (1, 8, 8)
C_NOISE = (-1.553, 0.1, 1.095)
SIGMAS = (0.002, 0.00713, 0.0371, 0.12, 0.5, 1.3, 4.4, 17.0, 49.3, 80.0)
PRECONDS = {"VPPrecond": ("beta_d", "beta_min", "M", "epsilon_t"), "VEPrecond": (), "iDDPMPrecond": ("C_1", "C_2", "M"),
            "EDMPrecond": ("sigma_data",)}  # constants of their constructors, beside the noise range

_SONG = {"name": "song_unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
_EDM2 = {"name": "edm2_unet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
         "head_channels": 8}
NETS: dict[str, dict[str, Any]] = {
    "ddpmpp": _SONG,
    "ncsnpp": _SONG | {"embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1],
                       "channel_mult_noise": 2},
    "song_skip": _SONG | {"encoder": "skip", "decoder": "skip", "out_channels": 4},
    # The original's heads have 64 channels, which no option changes.
    "adm": _SONG | {"name": "dhariwal_unet", "model_channels": 64, "out_channels": 4},
    "edm2": _EDM2,
    "edm2_options": _EDM2 | {"channel_mult_noise": 2, "channel_mult_emb": 3, "resample_filter": [1, 3, 3, 1],
                             "label_balance": 0.3, "concat_balance": 0.6, "res_balance": 0.4, "attn_balance": 0.2,
                             "clip_act": 1.5},
}
PRECOND_NET = _SONG  # with twice the output channels for iDDPMPrecond, whose second half is a variance


def unit(name: str, *shape: int) -> Tensor:
    """Uniform numbers of mean 0 and variance 1, float32, from the name alone."""
    u = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).random(shape)
    return torch.from_numpy(np.asarray((u - 0.5) * math.sqrt(12), dtype=np.float32))


@torch.no_grad()
def fill(net: nn.Module) -> nn.Module:
    """Weights from their names, of a scale that keeps activations near 1; constant filters and tables stay."""
    for name, value in net.state_dict().items():
        name, last = name.removeprefix("model."), name.rpartition(".")[2]  # the same alone and inside a preconditioning
        if last in ("resample_filter", "u"):
            continue
        u = unit(name, *value.shape)
        if value.ndim > 1:
            value.copy_(u / math.sqrt(value[0].numel()))
        elif last in ("freqs", "phases"):
            value.copy_(u)
        else:
            value.copy_(0.1 * u + (last != "bias"))  # factors near 1: norms, emb_gain, out_gain
    return net.eval()


def net_input() -> tuple[Tensor, Tensor]:
    """x (3, 2, 8, 8) and c_noise (3,)."""
    return unit("x", 3, *SHAPE), torch.tensor(C_NOISE)


def precond_input() -> tuple[Tensor, Tensor]:
    """x = image + sigma noise, (S, 1, 8, 8), and sigma (S,)."""
    sigma = torch.tensor(SIGMAS)
    image, noise = unit("image", len(sigma), *PRECOND_SHAPE), unit("noise", len(sigma), *PRECOND_SHAPE)
    return 0.5 * image + sigma[:, None, None, None] * noise, sigma


def labels_for(case: str, batch: int) -> Tensor | None:
    """(batch,) int64: 2, 0, 1, 2, ..., for `cond`."""
    return (torch.arange(batch) + 2) % CLASSES if case == "cond" else None


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the root mean square, the worst sample's."""
    theirs = theirs.double()
    worst = (ours.detach().double() - theirs).flatten(1).abs().amax(1)
    return (worst / theirs.flatten(1).square().mean(1).sqrt()).max().item()
