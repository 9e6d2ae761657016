"""Images a second of one-step drawing: the pipeline of `pidistill sample` against a plain loop, and against Heun's 35 calls.

The plain loop is noise, network, copy to the CPU as float32, then all files, in sequence, with a new generator for every
image; its files are what PIL and numpy.savez_compressed write. Both draw in batches of the same size. Networks: the
bundled digits' (a student that starts from its teacher), and one of EDM's CIFAR-10 size with random weights, which on a CPU
draws few images a second. Then what the parts cost an image: noise by one and by several threads, PNGs, archives.
`--batches` takes the times behind `memory.fit_batch_size` on this device instead.

    python -m benchmarks.sampling --write benchmarks/results/sampling.md
    python -m benchmarks.sampling --batches                     # about 5 minutes on two cores
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from benchmarks.harness import alternate, synchronise, table, write
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pidistill.core.precision import Precision, set_float32_products
from pidistill.core.processes import choose_device
from pidistill.core.seeds import NOISE, labels_of, noise, stream
from pidistill.core.tensors import find_device, quantise
from pidistill.core.threads import count_cores
from pidistill.evaluation.pictures import encode_png
from pidistill.jobs import sample as verb
from pidistill.models.batch_size import fit_batch_size
from pidistill.models.denoiser import Denoiser
from pidistill.models.samplers.base import Sampler
from pidistill.models.student import Student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.parts import native
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config

HEUN = Sampler("heun", 18)


def pair(preset: str) -> tuple[Student, Denoiser]:
    """A student and its teacher: of the digits, or of EDM's CIFAR-10 size with random weights."""
    if preset == "digits":
        teacher = load_teacher("bundled:digits")
        return make_student(teacher).eval().requires_grad_(False), teacher
    config = load_config(DistillConfig, preset)
    teacher = load_teacher(config.teacher, weights=False).to_empty(device="cpu")
    for p in teacher.parameters():
        nn.init.normal_(p, std=0.02)
    return make_student(teacher).eval().requires_grad_(False), teacher.eval().requires_grad_(False)


@torch.inference_mode()
def plain_images(student: Student, num: int, batch: int) -> tuple[Tensor, Tensor | None]:
    device, images = find_device(student), []
    y = labels_of(range(num), student.num_classes)
    for k in range(0, num, batch):
        rows = [stream(seed, domain=NOISE).standard_normal(student.shape, dtype=np.float32)
                for seed in range(num)[k:k + batch]]
        z = torch.from_numpy(np.stack(rows)).to(device) * student.t_max
        images.append(student(z, student.drawing_time, None if y is None else y[k:k + batch].to(device)).float().cpu())
    return torch.cat(images).clip(-1, 1), y


def plain(out: Path, student: Student, num: int, batch: int) -> None:
    images, y = plain_images(student, num, batch)
    pixels = quantise(images).permute(0, 2, 3, 1).numpy()
    if out.suffix == ".npz":
        np.savez_compressed(out, images=pixels, seeds=np.arange(num), **({} if y is None else {"labels": y.numpy()}))
        return
    out.mkdir(parents=True)
    for seed, image in enumerate(pixels):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out / f"{seed:06d}.png")


def emptied(out: Path, function: Callable[[Path], object]) -> Callable[[], None]:
    """Into a place that is empty again at every call."""
    def call() -> None:
        out.parent.mkdir(exist_ok=True)
        out.unlink() if out.is_file() else shutil.rmtree(out, ignore_errors=True)
        function(out)
    return call


def throughput(name: str, num: int, turns: int, args: argparse.Namespace, folder: Path) -> list[list[str]]:
    student, teacher = (model.to(args.device) for model in pair(name))
    batch = args.batch or fit_batch_size(student, args.device)
    num = max(num, 4 * batch) if args.device.type == "cuda" else num
    batch = min(batch, num)
    call = verb.prepare_call(student, args.precision, batch if args.compile else None)
    rows = []
    for kind, target in (("npz", "a.npz"), ("PNGs", "pngs")):
        ours = emptied(folder / name / target,
                       lambda out: verb.sample(out, student, range(num), batch_size=batch, call=call))
        theirs = emptied(folder / name / f"plain-{target}", lambda out: plain(out, student, num, batch))
        found = alternate(theirs, ours, turns)
        rows.append([name, f"{num} to {kind}", "plain loop", f"{num / found.seconds[0]:.4g}",
                     f"{num / found.seconds[1]:.4g}", str(found)])
    few = max(num // 10, 1)  # of the teacher's, which takes 35 times as long for each
    ready = verb.prepare_call(teacher, args.precision, min(batch, few) if args.compile else None)
    ours = lambda: verb.sample(folder / "b.npz", student, range(num), batch_size=batch, call=call)
    theirs = lambda: verb.sample(folder / "c.npz", teacher, range(few), batch_size=min(batch, few), sampler=HEUN, call=ready)
    found, scale = alternate(theirs, ours, max(turns // 2, 2), warm=0), num / few
    ratio = " ".join(f"{value * scale:.1f}" for value in (found.median, found.low, found.high))
    rows.append([name, f"{num} (teacher {few}) to npz", "teacher, heun:18", f"{few / found.seconds[0]:.4g}",
                 f"{num / found.seconds[1]:.4g}", "{} ({}-{})".format(*ratio.split())])
    return rows


def per_image(function: Callable[[], object], num: int) -> str:
    times = []
    for _ in range(4):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) / num)
    return f"{min(times) * 1e6:.1f} | {1 / min(times):.0f}"


def parts(folder: Path, num: int = 2000) -> list[list[str]]:
    """What surrounds the network, for 32x32 photographs (here: smooth noise)."""
    shape, rows = (3, 32, 32), []
    coarse = np.random.default_rng(0).normal(128, 60, (num, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = (coarse + np.random.default_rng(1).normal(0, 3, (num, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    new = lambda: [stream(seed, domain=NOISE).standard_normal(shape, dtype=np.float32) for seed in range(num)]
    rows.append(["noise, a generator an image", *per_image(new, num).split(" | ")])
    for threads in sorted({1, min(2, count_cores()), min(4, count_cores())}):
        split = [range(k, num, threads) for k in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            drawing = partial(pool.map, partial(noise, shape=shape), split)
            rows.append([f"noise, {threads} thread{'s' * (threads > 1)}",
                         *per_image(lambda drawing=drawing: list(drawing()), num).split(" | ")])
    write_pngs = lambda: verb.write_pngs(folder / "parts", torch.from_numpy(images).split(256), range(num))
    write_npz = lambda: verb.write_npz(folder / "parts.npz", torch.from_numpy(images).split(256), shape, range(num), None)
    pil = folder / "pil"
    pil.mkdir()
    rows += [["PNG encoded by PIL and written, one thread",
              *per_image(lambda: [Image.fromarray(image).save(pil / f"{k}.png") for k, image in enumerate(images)],
                         num).split(" | ")],
             ["PNG encoded, one thread", *per_image(lambda: [encode_png(image) for image in images], num).split(" | ")],
             [f"PNG encoded and written, {min(8, count_cores())} threads", *per_image(write_pngs, num).split(" | ")],
             ["npz deflated", *per_image(lambda: np.savez_compressed(folder / "y.npz", images=images), num).split(" | ")],
             ["npz as written", *per_image(write_npz, num).split(" | ")]]
    return rows


def flops(student: Student) -> float:
    """GFLOP an image, a multiplication and an addition counted as two."""
    with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():  # which knows PyTorch's alone
        labels = torch.zeros(1, dtype=torch.int64) if student.num_classes else None
        student(torch.zeros(1, *student.shape), student.drawing_time, labels)
    return counter.get_total_flops() / 1e9


def batches(args: argparse.Namespace) -> str:
    """Milliseconds an image by batch size, in turn; the best of three."""
    rows = []
    for name, sizes in (("digits", (8, 16, 32, 64, 125, 250, 500, 1000)), ("cifar10", (1, 2, 4, 8, 16, 32, 64))):
        student = pair(name)[0].to(args.device)
        sizes = tuple(4 * size for size in sizes) if args.device.type == "cuda" else sizes
        best = dict.fromkeys(sizes, float("inf"))
        for _ in range(3):
            for size in sizes:
                num = max(size, 500 if name == "digits" else 16)
                synchronise()
                began = time.perf_counter()
                student.sample(range(num), batch_size=size)
                best[size] = min(best[size], (time.perf_counter() - began) / num)
        rows += [[name, str(size), f"{1000 * value:.3f}", "chosen" * (size == fit_batch_size(student, args.device))]
                 for size, value in best.items()]
    return table(["network", "batch", "ms an image", ""], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=1000, help="images of the digits; of CIFAR-10's size --num-large")
    parser.add_argument("--num-large", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--batch", type=int, help="default: what `fit_batch_size` finds")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument("--compile", action="store_true", help="the network, which is the plain loop's too")
    parser.add_argument("--device", type=choose_device, default="auto")
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    set_float32_products(args.precision)
    if args.batches:
        write(args.write, batches(args))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = throughput("digits", args.num, args.turns, args, Path(folder))
        rows += throughput("cifar10", args.num_large, 2, args, Path(folder))
        costs = parts(Path(folder))
    work = ", ".join(f"{name} {flops(pair(name)[0]):.3g}" for name in ("digits", "cifar10"))
    write(args.write, table(["network", "images", "A", "A, images/s", "pipeline, images/s", "pipeline : A"], rows) + "\n\n"
          + table(["beside the network, 32x32", "us an image", "images/s"], costs) + f"\n\nGFLOP an image: {work}.")


if __name__ == "__main__":
    main()
