"""One-step images a second of one student: here, in onnxruntime, in torch.export with AOTInductor, in diffusers.

Each is timed in turn with the student as `load_student` gives it, on the same noise and as many threads; the ratios are of
seconds, below 1 where the other is faster. A time is of several calls, with a pause before: the threads of onnxruntime go on
to wait for work for some milliseconds, and would take a core from whoever comes next. Noise is drawn before; the images end
in memory as float32. The student begins as
its teacher, since weights change no time: the bundled digits', or one of EDM's CIFAR-10 size with random weights.

    python -m benchmarks.exported --write benchmarks/results/exported.md          # about 10 minutes on two cores
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmarks.harness import alternate, table, write
from benchmarks.sampling import pair
from torch import Tensor

from pidistill.core.seeds import labels_of, noise
from pidistill.files.onnx_file import check_onnx
from pidistill.jobs.export.base import export
from pidistill.models.student import Student, load_student
from pidistill.nets.parts import native

Draw = Callable[[Tensor, Tensor | None], Tensor]


def draw_here(student: Student) -> Draw:
    """The student as it is."""
    @torch.inference_mode()
    def draw(z: Tensor, y: Tensor | None) -> Tensor:
        return student.generate(z * student.t_max, y).clip(-1, 1)
    return draw


def draw_with_onnx(path: Path, threads: int) -> Draw:
    """onnxruntime, with so many threads."""
    import onnxruntime

    check_onnx(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    feed = lambda z, y: dict(zip(names, (v.numpy() for v in (z, y) if v is not None)))
    return lambda z, y: torch.from_numpy(session.run(["image"], feed(z, y))[0])


def draw_with_inductor(path: Path, folder: Path) -> Draw:
    """torch.export's program, compiled by AOTInductor."""
    target = str(folder / "student.aoti.pt2")
    package = torch._inductor.aoti_compile_and_package(torch.export.load(path), package_path=target)
    run = torch._inductor.aoti_load_package(package)
    return lambda z, y: run(*(v for v in (z, y) if v is not None))


def draw_with_program(path: Path) -> Draw:
    """torch.export's program, as it is."""
    run = torch.export.load(path).module()

    @torch.inference_mode()
    def draw(z: Tensor, y: Tensor | None) -> Tensor:
        return run(*(v for v in (z, y) if v is not None))
    return draw


def draw_with_diffusers(folder: Path) -> Draw:
    """diffusers' pipeline."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return lambda z, y: pipe(len(z), y, latents=z, output_type="pt").images


def without_kernels(draw: Draw) -> Draw:
    """The same with PyTorch's operators."""
    def run(z: Tensor, y: Tensor | None) -> Tensor:
        with native.switched_off():
            return draw(z, y)
    return run


def repeat(draw: Draw, given: tuple[Tensor, Tensor | None], calls: int) -> None:
    """Draw so many times, one batch after the other."""
    for _ in range(calls):
        draw(*given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits", help="digits, or cifar10")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    student = pair(options.preset)[0]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        student.save(root / "student")
        student = load_student(root / "student")
        for form, more in (("onnx", {}), ("onnx", {"precision": "int8"}), ("torch-export", {}), ("diffusers", {})):
            print(export(str(root / "student"), form, root / "-".join([form, *more.values()]), options=more), flush=True)
        others = {"onnxruntime": draw_with_onnx(root / "onnx" / "student.onnx", options.threads),
                  "onnxruntime, int8": draw_with_onnx(root / "onnx-int8" / "student.onnx", options.threads),
                  "torch.export": draw_with_program(root / "torch-export" / "student.pt2"),
                  "torch.export, AOTInductor": draw_with_inductor(root / "torch-export" / "student.pt2", root),
                  "diffusers": draw_with_diffusers(root / "diffusers")}
        here, rows = draw_here(student), []
        others["here, without our kernels"] = without_kernels(here)
        for batch in options.batches:
            given = noise(range(batch), student.shape), labels_of(range(batch), student.num_classes)
            for label, draw in others.items():
                calls = max(3, 24 // batch)
                other, ours = (partial(repeat, each, given, calls) for each in (draw, here))
                ratio = alternate(other, ours, options.pairs, 1, 0.2)
                speeds = [f"{batch * calls / seconds:.0f}" for seconds in ratio.seconds]
                rows.append([str(batch), label, *speeds, str(ratio)])
                print(rows[-1], flush=True)
    head = ["images at a time", "drawn by", "images/s", "images/s here, in turn", "seconds, of ours"]
    write(options.write, table(head, rows))


if __name__ == "__main__":
    main()
