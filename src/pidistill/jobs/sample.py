"""`pidistill sample`: draw images of a student or a teacher, as a grid, a folder of PNGs or an NPZ."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor, nn

from pidistill.core.compiling import try_compile
from pidistill.core.errors import ForeignError, PidistillError, words_of
from pidistill.core.precision import HALF, Precision, autocast, parse_precision, set_float32_products
from pidistill.core.processes import choose_device
from pidistill.core.profiles import Average
from pidistill.core.seeds import parse_integers
from pidistill.core.tensors import dequantise, find_device, quantise
from pidistill.core.threads import count_cores, run_ahead
from pidistill.evaluation.pictures import check_drawable, encode_png, write_grid
from pidistill.files.folders import check_free
from pidistill.models.batch_size import fit_batch_size
from pidistill.models.denoiser import Denoiser
from pidistill.models.drawing import choose_labels
from pidistill.models.load import load_model
from pidistill.models.samplers.base import STEPS, Sampler, draw_teacher, parse_single_sampler
from pidistill.models.student import Student
from pidistill.nets.base import Own

PNGS_AT_ONCE = 32  # PNGs that a thread writes before it takes the next


def sample_spec(spec: str, out: Path, seeds: str = "0-63", labels: str | None = None, *, ema: Average | None = None,
                columns: int | None = None, batch: int | None = None, sampler: str = "heun", steps: int | None = None,
                gamma: float | None = None, device: str = "auto", precision: str = "fp32", compile: bool = False,
                force: bool = False, net: Own | None = None) -> str:
    """Load the model that a spec names and draw its images into `out`; gives a line on what was written.

    spec: of a student or a teacher.
    out: as `sample` takes it.
    seeds, labels: numbers and ranges, `0-63,70`; without labels each seed has its own.
    ema: EMA rate of a student, or the width of a profile.
    columns: of a grid.
    batch: images at a time; None: what the memory holds.
    sampler, steps: of a teacher, as `parse_single_sampler` takes them; by default 18 steps.
    steps, gamma: of a student, as `Student.draw` takes them; by default a single step.
    device: as `choose_device` takes it.
    precision: of the network's products.
    compile: whether the network is compiled first.
    force: what is there is replaced.
    net: of a student, as `load_student` takes it.
    """
    numbers = parse_integers(seeds)
    classes = None if labels is None else parse_integers(labels, "labels")
    solver, rounding = parse_single_sampler(sampler, steps or STEPS), parse_precision(precision)
    check_free(out, force)
    target = choose_device(device)
    set_float32_products(rounding)
    model = load_model(spec, ema, net).to(target)
    check_target(out, model.image_shape)
    if isinstance(model, Student):
        model.list_times(steps or 1), model.choose_gamma(gamma, steps or 1)  # or say so before the first image
    elif gamma is not None:
        raise PidistillError(f"{spec} is a teacher; gamma is of a student's steps")
    at_once = min(batch or fit_batch_size(model, target), len(numbers))
    call = prepare_call(model, rounding, at_once if compile else None)
    return sample(out, model, numbers, classes, columns=columns, batch_size=at_once, sampler=solver, call=call,
                  steps=steps or 1, gamma=gamma)


def sample(out: Path, model: Student | Denoiser, seeds: Sequence[int], labels: Sequence[int] | None = None, *,
           columns: int | None = None, batch_size: int = 250, sampler: Sampler | None = None,
           call: Callable[..., Tensor] | None = None, steps: int = 1, gamma: float | None = None) -> str:
    """Draw the images of `seeds` into `out`; returns what was written, and images/s.

    out: x.png is one grid; x.npz holds images (N, H, W, C) uint8 (float32 (N, *shape) for vectors), seeds and labels; any
        other name is a folder of SEED.png. Only for a grid are all images in memory at once.
    model: the student or the teacher, on its device.
    seeds, labels: of the images; labels default to the seeds' own.
    columns: of a grid, by default about as many as rows.
    batch_size: images at a time.
    sampler: of a teacher.
    call: what is called in place of the model, as in `Student.draw`.
    steps, gamma: of a student, as there.
    """
    check_target(out, model.image_shape)
    y = choose_labels(labels, model.num_classes, seeds)
    began, finite = time.perf_counter(), []

    def finish(x: Tensor) -> Tensor:
        finite.append(x.isfinite().all())  # on the device: nothing waits for it
        return to_pixels(x)

    if isinstance(model, Student):
        batches = model.draw(seeds, y, batch_size=batch_size, finish=finish, call=call, steps=steps, gamma=gamma)
    else:
        batches = draw_teacher(model, seeds, y, sampler=sampler or Sampler(), batch_size=batch_size, finish=finish,
                               call=call)
    try:
        with closing(batches):  # an error or Ctrl-C ends its threads
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.suffix == ".npz":
                write_npz(out, batches, model.image_shape, seeds, y)
            elif out.suffix == ".png":
                images = dequantise(torch.cat(list(batches)).permute(0, 3, 1, 2))
                write_grid(out, images, columns or max(1, math.isqrt(len(images) - 1) + 1))
            else:
                write_pngs(out, batches, seeds)
    except OSError as error:
        raise PidistillError(f"cannot write {out}: {error.strerror or error}") from None
    except torch.OutOfMemoryError as error:
        raise ForeignError(f"the memory does not hold {batch_size} images at a time; set --batch to fewer "
                           f"({words_of(error)})") from error
    if not torch.stack(finite).all():  # a pixel has no such number, and would be some grey
        raise PidistillError(f"{out} is written, but some of its images are not finite: the model gives NaN or infinity; "
                             "`pidistill inspect MODEL --check` asks a teacher at which noise levels")
    kind = {".npz": "", ".png": "the grid "}.get(out.suffix, "the folder ")
    return f"{len(seeds)} images in {kind}{out}, {len(seeds) / (time.perf_counter() - began):.4g} images/s"


def check_target(out: Path, shape: Sequence[int]) -> None:
    """Refuse to write images of this shape into `out` if that cannot be done, before an hour of sampling."""
    if out.suffix not in ("", ".png", ".npz"):
        raise PidistillError(f"--out must end in .png (a grid) or .npz, or name a folder without a dot, got {out}")
    if out.suffix != ".npz":
        check_drawable(shape)


def to_pixels(x: Tensor) -> Tensor:
    """Turn images (B, C, H, W) into pixels (B, H, W, C), uint8, before they cross the bus; vectors become float32."""
    return quantise(x.float()).permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x.float()


def write_npz(out: Path, batches: Iterable[Tensor], shape: Sequence[int], seeds: Sequence[int],
              labels: Tensor | None) -> None:
    """Write an archive as numpy.savez would, but batch by batch, and whole or not at all.

    It is stored: deflate takes 180 us for 32x32 photographs and saves 2 %.

    out: the .npz.
    batches: pixels of the images, as `to_pixels` gives them.
    shape: of an image (C, H, W), or of a vector.
    seeds, labels: of the images; labels (N,) or None.
    """
    shape = (*shape[1:], shape[0]) if len(shape) == 3 else tuple(shape)
    kind = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
    header = {"shape": (len(seeds), *shape), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(kind)}
    arrays: dict[str, Any] = {"seeds": np.array(seeds), **({} if labels is None else {"labels": labels.numpy()})}
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with ZipFile(temporary, "w") as archive:
            with archive.open("images.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for _ in run_ahead(lambda x: file.write(x.numpy().data), batches, threads=1, depth=2):
                    pass
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def write_pngs(out: Path, batches: Iterable[Tensor], seeds: Sequence[int]) -> None:
    """Write SEED.png of every image; several threads encode and write.

    out: the folder.
    batches: pixels of the images, as `to_pixels` gives them.
    seeds: of the images.
    """
    out.mkdir(exist_ok=True)
    for old in out.glob("*.png"):  # the folder holds what this call drew; --force was asked for
        old.unlink()

    def split_batches() -> Iterator[tuple[Sequence[int], np.ndarray]]:
        done = 0
        for batch in batches:
            for k in range(0, len(batch), PNGS_AT_ONCE):
                chunk = batch[k:k + PNGS_AT_ONCE].numpy()
                yield seeds[done:done + len(chunk)], chunk
                done += len(chunk)

    def save(chunk: tuple[Sequence[int], np.ndarray]) -> None:
        for seed, image in zip(*chunk):
            (out / f"{seed:06d}.png").write_bytes(encode_png(image))

    for _ in run_ahead(save, split_batches(), threads=min(8, count_cores()), depth=64):
        pass


def prepare_call(model: Student | Denoiser, precision: Precision = "fp32",
                 compile_for: int | None = None) -> Callable[..., Tensor]:
    """Give what to call in place of the model, whose network it prepares.

    model: the student or the teacher, on its device.
    precision: of the network's products.
    compile_for: the images at a time that the network is compiled for; None: it is not compiled.
    """
    device, call = find_device(model), model.__call__
    network = model.net if isinstance(model, Student) else getattr(model, "model", None)
    network = network if isinstance(network, nn.Module) else model
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # what the tensor cores' kernels want
    if compile_for:
        try_compile(network, what="the network", dynamic=False)
        call = pad_batches(call, compile_for)
    if precision not in HALF:
        return call

    def call_rounded(*args: Any) -> Tensor:
        with autocast(precision, device):
            return call(*args)

    return call_rounded


def pad_batches(call: Callable[..., Tensor], batch: int) -> Callable[..., Tensor]:
    """Let call(x, t, labels) see always `batch` images: a last batch of another size would be compiled anew."""
    def call_full(x: Tensor, t: float | Tensor, labels: Tensor | None = None, *times: float) -> Tensor:
        # Full batches are copied too: a view of what was made outside inference mode would be another type to the compiler.
        pad = lambda y: torch.cat([y, y[:1].expand(batch - len(y), *y.shape[1:])])
        t = pad(t) if isinstance(t, Tensor) and t.ndim else t
        return call(pad(x), t, None if labels is None else pad(labels), *times)[:len(x)]

    return call_full
