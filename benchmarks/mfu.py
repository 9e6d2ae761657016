"""(e) Achieved FLOP/s against the measured peak of the same machine: a large matrix product in the same type.

Peak: the best of several square products of up to about half a second each. Then, in turn with as many of the best product
as take as long: the student's network, forward and backward, on twice the batch, which is what a step asks of it, and whole
steps of PID (student, teacher, distance, optimiser, average). MFU is the ratio of both FLOP/s within a pair.

Operations are counted on the meta device, 2 a multiply-add, with every convolution a direct one. The CPU's own kernels
(`nets/parts/native`) convolve by Winograd's algorithm, which multiplies up to four times less: what they achieve, counted
so, may exceed the peak of a matrix product, as may cuDNN's choice. Normalisation, activations and the optimiser count as
nothing and take time. On the CPU in float32 a second column has PyTorch's operators in place of those kernels.

    python -m benchmarks.mfu [--network cifar10 ...] [--batch 4] [--precision bf16] [--lpips] [--compile never]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from benchmarks import networks
from benchmarks.harness import alternate, table, timed, write
from benchmarks.ours import Ours, device
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pidistill.core.precision import HALF, Precision, autocast, set_float32_products
from pidistill.jobs.dry_run import format_engineering
from pidistill.nets.parts import native
from pidistill.nets.parts.native import build
from pidistill.training.footprint import GPUEmulation

SIZES = (1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
BATCHES = {"digits": (64, 1024), "cifar10": (4, 64), "imagenet64": (1, 16)}  # on the CPU, on a GPU
LPIPS = (4, 64)  # at most as many with LPIPS, whose images have 224 pixels


class Product:
    """c = a b, all (n, n), `times` times."""

    def __init__(self, n: int, precision: Precision):
        self.precision, self.times, self.flop = precision, 1, 2 * n**3
        self.n = n
        self.a, self.b, self.c = (torch.randn(n, n, device=device()).to(HALF.get(precision)) for _ in range(3))

    def __call__(self) -> None:
        set_float32_products(self.precision)
        for _ in range(self.times):
            torch.mm(self.a, self.b, out=self.c)


def peak(precision: Precision) -> tuple[Product, float]:
    """The product with the most FLOP/s, and its seconds."""
    found: list[tuple[float, int, float]] = []
    for n in SIZES:
        product = Product(n, precision)
        product()
        seconds = min(timed(product) for _ in range(5))
        found.append((product.flop / seconds, n, seconds))
        if seconds > 0.15:  # the next takes two to three times as long
            break
    _, n, seconds = max(found)
    return Product(n, precision), seconds


class NetworkPass:
    """The student's network, forward and backward, as a step calls it."""

    def __init__(self, ours: Ours):
        self.ours, self.net = ours, ours.objective.networks["student"].net
        self.inputs = self.of(ours.batch)
        with FlopCounterMode(display=False) as counter, GPUEmulation():
            meta = self.of({key: value.to("meta") for key, value in ours.batch.items()})
            ours.meta.networks["student"].net(*meta).sum().backward()
        self.flop = counter.get_total_flops()

    def of(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        z, labels = batch["z"].repeat(2, 1, 1, 1), batch.get("labels")
        t_max = self.ours.objective.networks["student"].t_max
        return z / t_max, z.new_zeros(len(z)), None if labels is None else labels.repeat(2)

    def __call__(self) -> None:
        set_float32_products(self.ours.config.precision)
        torch.compiler.cudagraph_mark_step_begin()
        with autocast(self.ours.config.precision, self.ours.device):
            y = self.net(*self.inputs).float().sum()
        y.backward()
        self.net.zero_grad()


def against(work: Any, product: Product, seconds: float, pairs: int) -> str:
    """FLOP/s and their ratio to the product's, with its quartiles."""
    work()  # compiles what there is to compile
    product.times = max(1, round(timed(work) / seconds))
    ratio = alternate(work, product, pairs, warm=0)
    share = work.flop / (product.flop * product.times)
    return f"{format_engineering(work.flop / ratio.seconds[0])}FLOP/s, " \
           f"{share / ratio.median:.2f} ({share / ratio.high:.2f}-{share / ratio.low:.2f})"


def rows(network: str, batches: dict[str, int], options: dict[str, Any], ways: dict[str, Callable[[], Any]],
         product: Product, seconds: float, pairs: int) -> list[list[str]]:
    """batches: by distance. ways: contexts to compute in, one a column."""
    made: list[list[str]] = []
    for distance, batch in batches.items():
        ours = Ours(networks.teacher_of(network), batch, distance=distance, options=options)
        works = {f"step, {distance}": ours} if made else {"network": NetworkPass(ours), f"step, {distance}": ours}
        for name, work in works.items():
            cells = []
            for way in ways.values():
                with way():
                    cells.append(against(work, product, seconds, pairs))
            made.append([network, str(batch), name, f"{format_engineering(work.flop)}FLOP", *cells])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--batch", type=int, help="default: for each network and device one that fits")
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision))
    parser.add_argument("--compile", default="auto", help="as of a run: auto (on GPUs), never, default, reduce-overhead ...")
    parser.add_argument("--lpips", action="store_true", help="a step with LPIPS too")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    cuda = device().type == "cuda"

    products = {precision: peak(precision) for precision in (get_args(Precision) if cuda else dict.fromkeys(
        ["fp32", a.precision]))}
    peaks = [[precision, f"{product.n}", f"{format_engineering(product.flop / seconds)}FLOP/s"]
             for precision, (product, seconds) in products.items()]
    product, seconds = products[a.precision]
    del products

    ways: dict[str, Callable[[], Any]] = {"achieved, MFU (quartiles)": nullcontext}
    if not cuda and a.precision == "fp32" and a.compile in ("auto", "never") and build.load_library():
        ways = {"own kernels: achieved, MFU (quartiles)": nullcontext,
                "PyTorch's: achieved, MFU (quartiles)": native.switched_off}
    options = {"precision": a.precision, "compile": a.compile}
    found = []
    for network in a.network:
        batch = BATCHES[network][cuda]
        batches = {"l2": a.batch or batch} | ({"lpips": a.batch or min(batch, LPIPS[cuda])} if a.lpips else {})
        found += rows(network, batches, options, ways, product, seconds, a.pairs)
    write(a.write, "\n\n".join([
        table(["type", "n of the best n x n product", "peak"], peaks),
        table(["network", "batch", f"what, in {a.precision}", "operations", *ways], found),
        "Operations are those of direct convolutions: kernels by Winograd's algorithm, which multiply less, can exceed the "
        "peak. The network is called on twice the batch, as a step does."]))


if __name__ == "__main__":
    main()
