"""(g) What a step costs against N (`grid.points`), batch and resolution: ratios to a middle case, taken in turn.

A step looks at one pair of neighbouring times a sample, so its cost should not depend on N; it should follow the number of
operations in the batch and in the resolution, apart from what a step costs whatever it holds (optimiser, average, calls).
Networks: the digits' for N and batch; for resolutions a `song_unet` with attention at 16 pixels. Operations are
counted as direct convolutions.

    python -m benchmarks.scaling [--most 64] [--width 32] [--pairs 6]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks import networks
from benchmarks.harness import alternate, table, write
from benchmarks.ours import Ours

from pidistill.models.denoiser import Preconditioned
from pidistill.models.teachers.base import build_network_teacher

POINTS, RESOLUTIONS = (10, 50, 250, 1000), (16, 32, 64)


def scaling(what: str, cases: Sequence[int], middle: int, make: Callable[[int], Ours], pairs: int) -> str:
    """A table: seconds of a step and their ratio to the middle case's."""
    reference, rows, seconds = make(middle), {}, []
    for case in cases:
        if case != middle:
            ours = make(case)
            ratio = alternate(ours, reference, pairs)
            seconds.append(ratio.seconds[1])
            rows[case] = [f"{ratio.seconds[0]:.3g}", str(ratio), f"{ours.flop / reference.flop:.2f}"]
            del ours
    rows[middle] = [f"{statistics.median(seconds):.3g}" if seconds else "", "1", "1"]
    return table([what, "seconds a step", f"to that of {middle} (quartiles)", "operations, likewise"],
                 [[str(case), *rows[case]] for case in cases])


def unet(resolution: int, width: int) -> Preconditioned:
    torch.manual_seed(0)
    net: dict[str, Any] = {"name": "song_unet", "model_channels": width, "channel_mult": [1, 2, 2], "num_blocks": 1,
                           "attn_resolutions": [16]}
    teacher = build_network_teacher(net, (3, resolution, resolution), 0)
    networks.lively(teacher.model)
    return teacher.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=64, help="largest batch; the others are powers of two below")
    parser.add_argument("--batch", type=int, default=16, help="for N")
    parser.add_argument("--batch-resolution", type=int, default=4, help="for resolutions")
    parser.add_argument("--width", type=int, default=32, help="of the U-Net for resolutions")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--write", type=Path)
    a = parser.parse_args()
    options = {"precision": a.precision, "compile": a.compile}
    batches = [2**k for k in range(a.most.bit_length())]

    def of_points(points: int) -> Ours:
        return Ours(networks.teacher_of("digits"), a.batch, points=points, options=options)

    def of_batch(batch: int) -> Ours:
        return Ours(networks.teacher_of("digits"), batch, options=options)

    def of_resolution(pixels: int) -> Ours:
        return Ours(unet(pixels, a.width), a.batch_resolution, options=options)

    write(a.write, "\n\n".join([
        f"Digits' network, batch {a.batch}, against N.", scaling("N", POINTS, 250, of_points, a.pairs),
        "Digits' network, against the batch.", scaling("batch", batches, batches[len(batches) // 2], of_batch, a.pairs),
        f"U-Net of width {a.width}, batch {a.batch_resolution}, against height and width of the images.",
        scaling("pixels", RESOLUTIONS, 32, of_resolution, a.pairs)]))


if __name__ == "__main__":
    main()
