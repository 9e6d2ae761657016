"""What `pidistill sample` writes, how it fails, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill.core import threads as pipeline
from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.core.tensors import quantise
from pidistill.jobs import sample as verb
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import shake, tiny_teacher

SEEDS = [3, 0, 17, 5, 999999, 12]


@pytest.fixture
def student():
    return make_student(tiny_teacher()).eval().requires_grad_(False)


@pytest.fixture
def coloured():
    return make_student(tiny_teacher(shape=(3, 8, 8))).eval().requires_grad_(False)


def pixels_of(student, labels=None, batch_size=4) -> np.ndarray:
    return quantise(student.sample(SEEDS, labels, batch_size=batch_size)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("which", ["student", "coloured"])
def test_arrays_and_files_hold_the_students_images_bit_for_bit(which, request, tmp_path):
    model = request.getfixturevalue(which)
    said = verb.sample(tmp_path / "a.npz", model, SEEDS, batch_size=4)
    assert said.startswith(f"6 images in {tmp_path / 'a.npz'}, ") and said.endswith(" images/s")
    expected = pixels_of(model)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["images"], expected) and file["images"].dtype == np.uint8
        assert file["seeds"].tolist() == SEEDS and file["labels"].tolist() == labels_of(SEEDS, 3).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    verb.sample(tmp_path / "deep" / "pngs", model, SEEDS, batch_size=4)
    for seed, image in zip(SEEDS, expected):
        read = np.asarray(Image.open(tmp_path / "deep" / "pngs" / f"{seed:06d}.png"))
        assert np.array_equal(read.reshape(image.shape), image)
    assert len(list((tmp_path / "deep" / "pngs").iterdir())) == 6


def test_chunks_of_a_folder_keep_seeds_and_images_together(student, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "PNGS_AT_ONCE", 2)
    verb.sample(tmp_path / "pngs", student, SEEDS, [1], batch_size=3)
    for seed, image in zip(SEEDS, pixels_of(student, [1], 3)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "pngs" / f"{seed:06d}.png")), image[:, :, 0])


def test_teachers_and_vectors(teacher, tmp_path):
    verb.sample(tmp_path / "a.npz", teacher, SEEDS, batch_size=4, sampler=Sampler("euler", 3))
    expected = sample_teacher(teacher, SEEDS, labels_of(SEEDS, 3), sampler="euler", steps=3, batch_size=4)
    assert np.array_equal(np.load(tmp_path / "a.npz")["images"], quantise(expected).permute(0, 2, 3, 1).numpy())
    verb.sample(tmp_path / "b.npz", gaussian("2"), SEEDS, batch_size=4)
    with np.load(tmp_path / "b.npz") as file:
        assert file["images"].dtype == np.float32 and "labels" not in file
        assert np.array_equal(file["images"], sample_teacher(gaussian("2"), SEEDS, batch_size=4).numpy())


def full(*_) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_whoever_writes(student, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PidistillError, match=r"cannot write .*pngs: No space left on device"):
        verb.sample(tmp_path / "pngs", student, range(200), batch_size=2)
    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(PidistillError, match=r"cannot write .*a.npz: No space left on device"):
        verb.sample(tmp_path / "a.npz", student, SEEDS)
    assert not list(tmp_path.glob("*a.npz*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_under_an_archive(student, tmp_path, monkeypatch):
    real = verb.ZipFile
    with open("/dev/full", "wb", buffering=0) as disk:
        monkeypatch.setattr(verb, "ZipFile", lambda path, mode: real(disk, mode))
        with pytest.raises(PidistillError, match="No space left on device"):
            verb.sample(tmp_path / "a.npz", student, range(4000), batch_size=500)


def test_too_large_a_batch_says_what_to_do(student, tmp_path):
    def call(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(PidistillError, match="does not hold 6 images at a time; set --batch to fewer"):
        verb.sample(tmp_path / "a.npz", student, SEEDS, batch_size=6, call=call)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision, most", [("bf16", 0.1), ("fp16", 0.01)])
def test_a_lower_precision_changes_images_a_little(student, precision, most):
    exact = torch.cat(list(student.draw(SEEDS, labels_of(SEEDS, 3))))
    call = verb.prepare_call(student, precision)
    rounded = torch.cat(list(student.draw(SEEDS, labels_of(SEEDS, 3), call=call)))
    assert rounded.dtype == torch.float32 and 1e-5 < (rounded - exact).abs().max() < most
    assert torch.equal(torch.cat(list(student.draw(SEEDS, labels_of(SEEDS, 3), call=verb.prepare_call(student)))), exact)


def test_precision_reaches_the_files(cli, tmp_path):
    torch.manual_seed(1)
    teacher = tiny_teacher()
    student = make_student(teacher)
    shake(student.net)
    student.save(tmp_path / "s")
    images = {}
    for name in ("fp32", "tf32", "bf16"):
        assert cli("sample", tmp_path / "s", "--precision", name, "--out", tmp_path / f"{name}.npz").code == 0
        images[name] = np.load(tmp_path / f"{name}.npz")["images"].astype(int)
    assert (images["tf32"] == images["fp32"]).all()  # no NVIDIA GPU, no effect
    assert 0 < np.abs(images["bf16"] - images["fp32"]).max() < 20
    assert "did you mean 'bf16'" in cli("sample", tmp_path / "s", "--precision", "bf61", "--out", tmp_path / "x").error()
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's own default


def test_compile_is_asked_for_one_shape_and_changes_nothing(cli, tmp_path, monkeypatch):
    shapes = []

    def backend(graph, inputs):
        shapes.append([tuple(x.shape) for x in inputs if x.ndim == 4 and x.shape[1:] == (1, 8, 8)])
        return graph.forward

    real = verb.try_compile
    monkeypatch.setattr(verb, "try_compile", lambda target, **options: real(target, backend=backend, **options))
    make_student(tiny_teacher()).save(tmp_path / "s")
    for more in ([], ["--compile"]):
        done = cli("sample", tmp_path / "s", "--seeds", "0-9", "--batch", 4, *more, "--out", tmp_path / f"a{len(more)}.npz")
        assert done.code == 0, done.err
    assert shapes == [[(4, 1, 8, 8)]]
    assert np.array_equal(*(np.load(tmp_path / f"a{k}.npz")["images"] for k in (0, 1)))


@pytest.mark.parametrize("args, unused", [
    (["inspect", "bundled:digits"], ["torch", "numpy", "rich", "yaml"]),
    (["sample", "bundled:digits", "--seeds", "0-1", "--steps", "1", "--out", "a"],
     ["torchvision", "matplotlib", "accelerate", "tensorboard", "scipy", "lpips", "torch_fidelity", "diffusers",
      "onnxruntime", "rich", "torch._dynamo", "torch._inductor", "pidistill.training.trainer",
      "pidistill.evaluation.evaluate", "pidistill.nets.features.base"])])
def test_a_verb_imports_only_what_it_needs(args, unused, tmp_path):
    code = ("import sys\nfrom pidistill.cli import main\nsys.argv = ['pidistill', *sys.argv[1:]]\n"
            f"try:\n    main()\nexcept SystemExit as done:\n    print(done.code, [n for n in {unused} if n in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_ctrl_c_ends_at_once_and_leaves_no_archive(tmp_path):
    """The network of the process stops it itself, in the middle, as Ctrl-C would."""
    code = ("import os, signal, sys\nfrom pidistill.models import student\nfrom pidistill.cli import main\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell runs in the background
            "calls = 0\nplain = student.Student.forward\n"
            "def forward(self, *args):\n    global calls\n    calls += 1\n"
            "    os.kill(os.getpid(), signal.SIGINT) if calls == 5 else None\n    return plain(self, *args)\n"
            "student.Student.forward = forward\nsys.argv = ['pidistill', *sys.argv[1:]]\nmain()")
    make_student(tiny_teacher()).save(tmp_path / "s")
    for out in ("a.npz", "pngs"):
        done = subprocess.run([sys.executable, "-c", code, "sample", "s", "--seeds", "0-9999", "--batch", "8", "--out", out],
                              capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 130 and "Traceback" not in done.stderr and done.stdout == ""
    assert not list(tmp_path.glob("*.npz*")) and not list(tmp_path.glob(".a*"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision, most", [("fp32", 1), ("tf32", 4), ("fp16", 4), ("bf16", 24)])
def test_a_gpu_writes_the_cpus_images(coloured, tmp_path, precision, most):
    from pidistill.core.precision import set_float32_products

    expected = pixels_of(coloured).astype(int)
    set_float32_products(precision)
    for name, compile_for in (("eager", None), ("compiled", 4)):
        call = verb.prepare_call(coloured.cuda(), precision, compile_for)
        assert next(p for p in coloured.net.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1).is_contiguous(
            memory_format=torch.channels_last)
        verb.sample(tmp_path / f"{name}.npz", coloured, SEEDS, batch_size=4, call=call)
        assert np.abs(np.load(tmp_path / f"{name}.npz")["images"] - expected).max() <= most


def test_cores_are_those_of_this_process():
    assert 1 <= pipeline.count_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("out", ["a.npz", "a.png", "folder"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_no_success(tmp_path, out, bad):
    """One image among others, in a batch before the last; its pixels would be some grey or white."""
    def fail_for_one(x, t, labels=None):
        return torch.cat([x[:1] * factor, x[1:]])

    for factor in (1.0, bad):
        draw = lambda: verb.sample(tmp_path / out, FunctionDenoiser(fail_for_one, (1, 4, 4)), range(5), batch_size=3,
                                   sampler=Sampler("euler", 2))
        if factor == 1:
            assert "5 images" in draw()
        else:
            with pytest.raises(PidistillError, match="some of its images are not finite"):
                draw()
