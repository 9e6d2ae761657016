"""Mixed precision: what it changes, what stays float32, and steps whose gradients overflow."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from pidistill.core.precision import autocast, set_float32_products
from pidistill.core.registry import build, list_members
from pidistill.files.manifest import write_manifest
from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors
from pidistill.models.student_init import make_student
from pidistill.training.log import read_metrics
from tests.helpers import CLASSES, MLP, NET, SHAPE, grid_of, network, pid_of, shake, start, tiny_teacher
from tests.runs import cut, metrics, start_run

CPU = torch.device("cpu")
NETS = {"song_unet": NET, "mlp": MLP}
LIMITS = {"bf16": (1e-4, 3e-2), "fp16": (1e-5, 4e-3)}  # least and most relative error of the network's output


@pytest.fixture(autouse=True)
def flags():
    """The switches for TF32 as they were: `train` sets them for the whole program."""
    before = tf32_flags()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def tf32_flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision, allowed", [("fp32", False), ("tf32", True), ("bf16", True), ("fp16", True)])
def test_only_fp32_forbids_tf32(precision, allowed):
    for before in (False, True):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = before
        set_float32_products(precision)
        assert tf32_flags() == (allowed, allowed)
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")  # what the compiler reads


def test_a_run_sets_them(tmp_path):
    for precision, allowed in (("tf32", True), ("fp32", False)):
        start_run(tmp_path / precision, {"precision": precision, "train.steps": 1})
        assert tf32_flags() == (allowed, allowed)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_no_half_type_without_autocast(precision):
    student, z = make_student(tiny_teacher()).eval(), start(SHAPE, 2, dtype=torch.float32)
    with torch.no_grad():
        plain = student.F(z, torch.ones(2))
        with autocast(precision, CPU):
            assert torch.equal(student.F(z, torch.ones(2)), plain)


@pytest.mark.parametrize("precision", LIMITS)
def test_half_types_round_the_network_and_give_float32(precision):
    student, z, y = make_student(tiny_teacher()).eval(), start(SHAPE, 8, dtype=torch.float32), torch.arange(8) % CLASSES
    t, (least, most) = grid_of(student, 8).t, LIMITS[precision]
    with torch.no_grad():
        plain = student.F(z, t, y)
        with autocast(precision, CPU):
            F, x = student.F(z, t, y), student(z, t, y)
    assert F.dtype == x.dtype == torch.float32 and torch.equal(x[0], z[0])  # the boundary condition holds bit for bit
    assert least < (F - plain).norm() / plain.norm() < most


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("kind, name", [(kind, name) for kind in NETS for name in list_members("schemes")
                                        if (kind, name) != ("song_unet", "autodiff")])
def test_differences_are_float32(kind, name, precision):
    """Under autocast too: nothing after the network's output is rounded again."""
    student, z, y = make_student(tiny_teacher(NETS[kind])), start(SHAPE, 6, dtype=torch.float32), torch.arange(6) % CLASSES
    t, scheme, outputs = grid_of(student, 6).t, build("schemes", name), []

    def F(*times):
        values = network(student, z, y)(*times)
        outputs.append(tuple(value.detach() for value in values))
        return values

    with autocast(precision, CPU):
        x, times, prediction = scheme(F, z, torch.arange(6), t, 80.0)
        prediction.square().mean().backward()
    assert x.dtype == prediction.dtype == torch.float32 and times.dtype == torch.float64
    assert all(p.dtype == p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in student.parameters())
    if name != "autodiff":
        again = scheme(lambda *times: tuple(f.double() for f in outputs[0]), z.double(), torch.arange(6), t, 80.0)
        torch.testing.assert_close(prediction.double(), again.prediction, rtol=1e-5, atol=1e-5)


# runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_runs_stay_near_those_in_float32(tmp_path, precision, images):
    plain = start_run(tmp_path / "fp32", images=images)
    half = start_run(tmp_path / precision, {"precision": precision}, images=images)
    for a, b in zip(plain, half, strict=True):
        assert b.dtype == torch.float32 and bool(b.isfinite().all())
        assert 0 < (a - b).norm() < 0.05 * a.norm()
    for a, b in zip(metrics(tmp_path / "fp32"), metrics(tmp_path / precision), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05) and b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.2)
    saved = read_tensors(tmp_path / precision / "checkpoints" / "000006" / "student.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}


def scale_of(folder, step: int) -> float | None:
    return read_json(folder / "checkpoints" / f"{step:06d}" / "state.json")["phases"]["pid"]["loss_scale"].get("scale")


def set_scale(folder, step: int, scale: float) -> None:
    path = folder / "checkpoints" / f"{step:06d}" / "state.json"
    state = read_json(path)
    state["phases"]["pid"]["loss_scale"]["scale"] = scale
    path.write_text(json.dumps(state))
    (path.parent / "manifest.json").unlink()
    write_manifest(path.parent)


def test_the_loss_scale_is_saved_and_comes_back(tmp_path):
    options = {"precision": "fp16", "checkpoint.keep": 9}
    whole = start_run(tmp_path / "a", options)
    assert scale_of(tmp_path / "a", 3) == 65536
    cut(tmp_path / "a", tmp_path / "b", 3)
    resumed = start_run(tmp_path / "b", options)
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)
    assert read_json(tmp_path / "a" / "checkpoints" / "000006" / "state.json") == read_json(
        tmp_path / "b" / "checkpoints" / "000006" / "state.json")
    cut(tmp_path / "a", tmp_path / "c", 3)
    set_scale(tmp_path / "c", 3, 1024.0)
    start_run(tmp_path / "c", options)
    assert scale_of(tmp_path / "c", 6) == 1024


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_fp16_scales_the_loss(tmp_path, precision):
    start_run(tmp_path / "a", {"precision": precision, "train.steps": 1})
    assert scale_of(tmp_path / "a", 1) is None


def test_steps_that_overflow_are_skipped(tmp_path):
    """With a scale near float32's largest number every gradient overflows: no weight moves, and the scale halves."""
    options = {"precision": "fp16", "checkpoint.every": 1, "checkpoint.keep": 9, "log.every": 1}
    start_run(tmp_path / "a", options)
    cut(tmp_path / "a", tmp_path / "b", 3)
    set_scale(tmp_path / "b", 3, 2.0**127)
    weights, average = start_run(tmp_path / "b", options)
    at = lambda step: read_tensors(tmp_path / "b" / "checkpoints" / f"{step:06d}" / "student.safetensors")
    for step in (4, 5, 6):
        assert all(torch.equal(value, at(3)[key]) for key, value in at(step).items())
        assert scale_of(tmp_path / "b", step) == 2.0 ** (127 - (step - 3))
    assert bool(weights.isfinite().all() and average.isfinite().all())
    assert [record["step"] for record in read_metrics(tmp_path / "b")] == [1, 2, 3, 4, 5, 6]
    set_scale(tmp_path / "b", 6, 65536.0)  # and from there it trains on
    after, _ = start_run(tmp_path / "b", options | {"train.steps": 7})
    assert bool(after.isfinite().all()) and not torch.equal(after, weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision, most", [("fp32", 1e-4), ("tf32", 2e-2), ("fp16", 2e-2), ("bf16", 0.15)])
def test_cuda_step_is_near_float32(precision, most):
    """Loss and gradient of a batch on the device against float64 on the CPU, N = 35."""
    teacher = tiny_teacher()
    student = shake(make_student(teacher), scale=0.05)
    batch = {"z": start(SHAPE, 16, dtype=torch.float32), "i": torch.arange(16) * 2, "labels": torch.arange(16) % CLASSES}

    def step(student, teacher, batch, kind):
        with autocast(kind, batch["z"].device):
            loss = pid_of(student, teacher, 35).loss(batch).mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in student.parameters()]).cpu().double()

    wide = [copy.deepcopy(net).double() for net in (student, teacher)]
    exact, g = step(*wide, batch | {"z": batch["z"].double()}, "fp32")
    set_float32_products(precision)
    loss, h = step(student.cuda(), teacher.cuda(), {key: value.cuda() for key, value in batch.items()}, precision)
    assert bool(h.isfinite().all()) and loss == pytest.approx(exact, rel=most) and (g - h).norm() < most * g.norm()
    if precision != "fp32":
        assert (g - h).norm() > 1e-5 * g.norm()  # the option does something
