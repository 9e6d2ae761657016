"""The CPU's own kernels against PyTorch's operators, and the optimiser against PyTorch's, in turn.

    python -m benchmarks.kernels --write benchmarks/results/kernels.md

On a processor with AVX-512 the kernels are also compared with themselves without it, on one thread.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmarks import networks
from benchmarks.harness import alternate, table, write
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.nets.parts import native
from pidistill.nets.parts.native import build
from pidistill.training.optimizer import RAdam

# Channels in and out, size and batch: levels of the digits and CIFAR-10 networks as a step has them, and VGG16's at 224.
SHAPES = ((16, 16, 16, 128), (64, 64, 8, 128), (256, 256, 8, 8), (256, 256, 16, 8), (256, 256, 32, 8), (512, 256, 32, 8),
          (64, 64, 224, 4), (256, 256, 56, 4), (512, 512, 14, 4))


def forward_and_back(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() for x in inputs]

    def run() -> object:
        y = function(*leaves)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    return run


def compare_widths(pairs: int) -> str:
    """The kernels with AVX-512 over those without, forward and backward, on one thread; nothing where it is not there."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return ""
    libraries, load, threads = {}, build.load_library, torch.get_num_threads()
    for isa in ("", "avx2"):
        os.environ["PIDISTILL_NATIVE_ISA"] = isa
        load.cache_clear()
        libraries[isa] = load()
    del os.environ["PIDISTILL_NATIVE_ISA"]
    torch.set_num_threads(1)
    rows = []
    for c, out, size, batch in SHAPES:
        x, norm = native.to_channels_last(torch.randn(batch, c, size, size)), nn.GroupNorm(max(1, min(32, c // 4)), c)
        inputs = x, torch.randn(out, c, 3, 3) / 50, torch.randn(out)
        run = forward_and_back(lambda x, w, b, norm=norm: native.norm_silu_conv(x, norm, w, b), *inputs)

        def use(isa: str, run: Callable[[], object] = run) -> object:
            build.load_library = lambda: libraries[isa]  # type: ignore[assignment]
            return run()

        rows.append([f"{c} to {out}, {size}x{size}, {batch}", str(alternate(partial(use, ""), partial(use, "avx2"), pairs))])
    build.load_library = load
    torch.set_num_threads(threads)
    return table(["channels, size, batch", "normalisation, SiLU, convolution: AVX-512 / AVX2"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    rows = []
    for c, out, size, batch in SHAPES:
        x = native.to_channels_last(torch.randn(batch, c, size, size))
        weight, bias = torch.randn(out, c, 3, 3) / 50, torch.randn(out)
        norm = nn.GroupNorm(max(1, min(32, c // 4)), c)

        def chain(x: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm = norm) -> Tensor:
            return F.conv2d(F.silu(norm(x)), weight, bias, padding=1)

        def ours(x: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm = norm) -> Tensor:
            return native.norm_silu_conv(x, norm, weight, bias)

        pairs = ((native.conv3x3, lambda *x: F.conv2d(*x, padding=1)), (ours, chain))
        ratios = [alternate(*(forward_and_back(f, x, weight, bias) for f in pair), a.pairs) for pair in pairs]
        rows.append([f"{c} to {out}, {size}x{size}, {batch}", *map(str, ratios)])
    text = table(["channels, size, batch", "convolution", "normalisation, SiLU, convolution"], rows)

    rows = []
    for name in ("digits", "cifar10"):
        parameters = list(networks.student_of(networks.teacher_of(name)).parameters())
        for p in parameters:
            p.grad = torch.randn_like(p)
        steps = [make(parameters, lr=1e-9).step for make in (RAdam, torch.optim.RAdam)]
        ratio = alternate(*steps, a.pairs, warm=6)  # past the first five steps, which differ
        rows.append([name, str(ratio), " / ".join(f"{1e3 * each:.3g}" for each in ratio.seconds)])
    text += "\n\n" + table(["network", "RAdam, ours / PyTorch's", "ms"], rows)
    if widths := compare_widths(a.pairs):
        text += f"\n\n{widths}"
    write(a.write, f"Time, forward and backward, ours over PyTorch's operators (channels last):\n\n{text}")


if __name__ == "__main__":
    main()
