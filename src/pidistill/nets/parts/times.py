"""What a network has that knows more than one time: a second time beside the first, or M times of a trajectory at once.

    c(t, s) = c(t) + W1 silu(W0 e(s))             s, where a jump from t ends         Kim et al. (2024), CTM
    u <- u + silu(W u + F^-1(R . F u))            F over the M times                  Zheng et al. (2023), DSNO

W1, W and R begin at zero: a network that is extended so, and has a teacher's weights, begins as the teacher bit for bit. The
nonlinearity is SiLU, as elsewhere in these networks. The code is our own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import run_outside_autocast
from pidistill.nets.parts.initialisation import zeros
from pidistill.nets.parts.unet import Linear, UNetBlock


class SecondTime(nn.Module):
    """The embedding of a second time is W1 silu(W0 e(s)), (B,) -> (B, emb), which is added to the first's.

    embedding: e, of a time, (B,) -> (B, features).
    """

    def __init__(self, embedding: nn.Module, features: int, emb: int):
        super().__init__()
        self.embedding = embedding
        self.layer0, self.layer1 = Linear(features, emb), Linear(emb, emb, init=zeros)

    def forward(self, s: Tensor) -> Tensor:
        return self.layer1(F.silu(self.layer0(self.embedding(s))))


class TemporalConv(nn.Module):
    """The layer mixes M times of a trajectory at each place: u + silu(W u + F^-1(R . F u)), (B M, C, ...) -> the same.

    The M times of a sample are neighbours in the batch. R has a complex matrix for each of the M//2 + 1 modes of a real
    signal, stored as real and imaginary part, (M//2 + 1, C, C, 2). F is a product with the matrix of the discrete Fourier
    transform: for M of 4 and 8, 1.9 to 3.2 times as fast on the CPU as torch.fft, forward and backward.
    """

    def __init__(self, channels: int, times: int):
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.zeros(channels, channels))
        self.multiplier = nn.Parameter(torch.zeros(times // 2 + 1, channels, channels, 2))

    def convolve(self, u: Tensor) -> Tensor:
        """Compute W u + F^-1(R . F u), (B M, C, ...) -> the same."""
        analysis, synthesis = make_fourier_matrices(self.times, u)
        v = u.movedim(1, -1)  # channels last, as the kernels for the CPU leave them
        samples, modes, channels = u.shape[0] // self.times, len(self.multiplier), v.shape[-1]
        U = analysis @ v.reshape(samples, self.times, -1)  # real parts of all modes, then imaginary ones
        U = U.reshape(samples, 2, modes, -1, channels).permute(2, 0, 3, 1, 4).reshape(modes, -1, 2 * channels)
        real, imaginary = self.multiplier.unbind(-1)
        real = real + self.weight  # F^-1 W F = W
        matrix = torch.cat([torch.cat([real, -imaginary], dim=2), torch.cat([imaginary, real], dim=2)], dim=1)
        U = (U @ matrix.mT).reshape(modes, samples, -1, 2, channels).permute(1, 3, 0, 2, 4)
        return (synthesis @ U.reshape(samples, 2 * modes, -1)).reshape(v.shape).movedim(-1, 1)

    def forward(self, u: Tensor) -> Tensor:
        return u + F.silu(run_outside_autocast(self.convolve, u)).to(u.dtype)


def make_fourier_matrices(times: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Make the matrices of `torch.fft.rfft` and `irfft` over M times, (2 K, M) and (M, 2 K), K = M//2 + 1.

    The modes' real parts come first, then their imaginary ones. The type and the device are those of `like`.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    k, m = (torch.arange(n, device=like.device) for n in (times // 2 + 1, times))
    turns = k[:, None] * m % times  # in steps of 1/M
    phase = turns.to(wide) * (2 * math.pi / times)
    sine = torch.where(2 * turns % times == 0, 0, phase.sin())  # sin(pi) is not zero in floating point
    analysis = torch.cat([phase.cos(), -sine])
    share = torch.where(2 * k % times == 0, 1, 2).to(wide) / times  # a mode stands for its conjugate too
    return analysis.to(like.dtype), (analysis * share.repeat(2)[:, None]).mT.to(like.dtype)


def make_temporal_layers(enc: nn.ModuleDict, dec: nn.ModuleDict, times: int) -> nn.ModuleDict:
    """Make a layer for each residual block of a U-Net, of the block's name after enc_ or dec_; none for 0 times."""
    blocks = {f"{side}_{name}": block for side, part in (("enc", enc), ("dec", dec)) for name, block in part.items()
              if times and isinstance(block, UNetBlock)}
    return nn.ModuleDict({name: TemporalConv(block.out_channels, times) for name, block in blocks.items()})


def mix_times(layers: nn.ModuleDict, name: str, x: Tensor) -> Tensor:
    """Apply the temporal layer that follows the block of this name, if there is one, to x (B M, C, ...)."""
    return layers[name](x) if name in layers else x


def check_times(net: str, times: int, temporal: int) -> None:
    """Refuse, in the name of `net`, options that it does not have. Raises PidistillError."""
    if times not in (1, 2):
        raise PidistillError(f"{net}: times must be 1, for t, or 2, for t and s, got {times}")
    if temporal < 0:
        raise PidistillError(f"{net}: temporal must be the number of times of a trajectory, or 0, got {temporal}")


def split_times(net: str, x: Tensor, c_noise: Tensor, times: int, temporal: int) -> tuple[Tensor, Tensor | None]:
    """Give the first time and the second, (B,) each, None for the second if there is none.

    net: the network's name, for errors.
    x: (B, ...), the network's input.
    c_noise: (B,), or with two times (B, 2).
    times, temporal: the network's options.

    Raises PidistillError for a c_noise of another shape, and for a batch that does not hold `temporal` times of each sample.
    """
    if c_noise.ndim != times or (times == 2 and c_noise.shape[1] != 2):
        raise PidistillError(f"{net}: with times={times} c_noise must be {'(B, 2), t and s' if times == 2 else '(B,)'}, got "
                             f"{tuple(c_noise.shape)}")
    if temporal and x.shape[0] % temporal:
        raise PidistillError(f"{net}: with temporal={temporal} the batch must hold {temporal} times of each sample, side by "
                             f"side, got {len(x)}")
    return (c_noise[:, 0], c_noise[:, 1]) if times == 2 else (c_noise, None)
