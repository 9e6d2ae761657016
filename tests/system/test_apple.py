"""A GPU without float64: what runs there gives the CPU's numbers, and nothing of it asks the device for float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pidistill.core.processes import choose_device
from pidistill.core.tensors import cast_like, like, send, to_float64
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.references import make_reference
from pidistill.files.datasets import open_images
from pidistill.files.folders import write_folder
from pidistill.jobs.check import check_teacher
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import collect_tensors, describe_teacher
from pidistill.nets.features.base import load_features
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.setup import place_objective
from pidistill.training.step import Step
from tests.apple import AppleGPU, Refused
from tests.helpers import MLP, draw, pid_of, tiny_teacher
from tests.models.test_preconditioning import FACTS, FORMULAS, SPECS
from tests.runs import metrics


@pytest.fixture
def apple(monkeypatch, plain_kernels):
    """A Mac, whose kernels are PyTorch's."""
    with AppleGPU().enter(monkeypatch) as gpu:
        yield gpu


def test_the_device_refuses_what_a_mac_refuses(apple):
    x, wide = torch.ones(2, 3, device="mps"), torch.ones(2, 3, dtype=torch.float64)
    assert x.device.type == (2 * x).device.type == torch.zeros_like(x).device.type == "mps" and x.cpu().device.type == "cpu"
    for ask in (x.double, lambda: x.to("cpu", torch.float64), lambda: wide.to("mps"), lambda: wide.to("mps", torch.float32),
                lambda: torch.zeros(2, dtype=torch.float64, device="mps"), lambda: torch.add(x, torch.ones(2, 3)),
                lambda: torch.zeros(2, 3).copy_(x).double().copy_(x), lambda: x.sum(dtype=torch.float64)):
        with pytest.raises(Refused):
            ask()
    assert choose_device("mps").type == "mps" and choose_device().type == "cpu"


def test_conversions_go_over_the_cpu(apple):
    x = torch.rand(2, 1, 4, 4).to("mps")
    t = torch.tensor([0.1, 3], dtype=torch.float64)
    assert to_float64(x).device.type == "cpu" and torch.equal(to_float64(x), x.cpu().double())
    assert cast_like(t, x).device.type == like(t, x).device.type == "mps" and like(t, x).shape == (2, 1, 1, 1)
    assert torch.equal(cast_like(t, x).cpu(), t.float()) and send(t, x.device).dtype == torch.float32


@pytest.mark.parametrize("scheme", ["upwind", "midpoint", "central", "autodiff"])
def test_losses_and_gradients_are_the_cpu_s(monkeypatch, plain_kernels, scheme):
    def gradients(device: str) -> list[torch.Tensor]:
        teacher = tiny_teacher(classes=0)
        objective = pid_of(make_student(teacher), teacher, 10, scheme=scheme)
        place_objective(objective, torch.device(device))
        loss = objective.loss(draw(objective, range(5), device=device))
        loss.sum().backward()
        return [loss.detach().cpu(), *(p.grad.cpu() for p in objective.networks["student"].parameters())]

    expected = gradients("cpu")
    with AppleGPU().enter(monkeypatch) as gpu:
        assert all(torch.equal(a, b) for a, b in zip(expected, gradients("mps"), strict=True)) and gpu.counted > 50


@pytest.mark.parametrize("kind", FORMULAS)
def test_every_preconditioning_draws_the_cpu_s_images(apple, kind):
    teacher = tiny_teacher(MLP, preconditioning=SPECS[kind], **FACTS[kind])
    expected = sample_teacher(teacher, range(2), sampler=Sampler("heun", 3))
    assert torch.equal(sample_teacher(teacher.to("mps"), range(2), sampler=Sampler("heun", 3)), expected)


@pytest.mark.parametrize("form", ["trajectory", "consistency", "denoiser", "direct"])
def test_every_form_of_student_draws_the_cpu_s_images(apple, form):
    student = make_student(tiny_teacher(), form=form)
    expected = student.sample(range(3))
    assert torch.equal(student.to("mps").sample(range(3)), expected)


def test_metrics_are_the_cpu_s(apple, tmp_path):
    images, solutions = (torch.rand(12, 1, 16, 16) * 2 - 1 for _ in range(2))
    names = ["frechet", "inception_score", "trajectory_rmse", "kid"]
    expected = Measure("digits", None, (1, 16, 16), "cpu", names)(images, solutions)
    there = Measure("digits", None, (1, 16, 16), "mps", names)(images, solutions)
    assert there == pytest.approx(expected, rel=1e-9) and len(there) == 6
    np.savez(tmp_path / "a.npz", images=torch.randint(256, (5, 16, 16), dtype=torch.uint8).numpy())
    reference = make_reference(open_images(tmp_path / "a.npz"), "a", load_features("digits").to("mps"), "digits", None)
    assert reference.mean.dtype == torch.float64 and reference.mean.device.type == "cpu"


def test_a_teacher_is_checked_there(apple):
    checks = {device: check_teacher(tiny_teacher(MLP).to(device), batch=4) for device in ("cpu", "mps")}
    assert [(c.name, c.verdict) for c in checks["cpu"]] == [(c.name, c.verdict) for c in checks["mps"]]


@pytest.mark.parametrize("optimizer", ["radam", "adam"])
def test_a_step_that_is_not_finite_is_left_out_by_kernels_that_do_not_look(apple, monkeypatch, optimizer):
    fused = torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *args, **kwargs: fused(*args, **kwargs | {"found_inf": None}))
    teacher = tiny_teacher(MLP)
    objective = pid_of(make_student(teacher), teacher, 10)
    place_objective(objective, choose_device("mps"))
    step = Step(objective, load_config(DistillConfig, "default", {"optimizer.name": optimizer}), torch.device("mps"))
    weights = lambda: [p.detach().cpu().clone() for p in objective.networks["student"].parameters()]
    batch = draw(objective, range(4), device="mps")
    for number in range(8):
        before = weights()
        bad = number == 6
        step(number, lambda bad=bad: [(0, batch | {"z": batch["z"] * float("nan")} if bad else batch)], 4)
        assert all(torch.equal(a, b) for a, b in zip(before, weights(), strict=True)) == bad
    assert step.phases["pid"].skipped.look()[2] == 1


def test_runs_and_verbs(cli, tmp_path, monkeypatch, plain_kernels):
    """What `accelerate` does on a Mac, from a teacher's folder to a report; losses, weights and images are the CPU's."""
    teacher = tiny_teacher(MLP, shape=(1, 16, 16))
    write_folder(tmp_path / "teacher", collect_tensors(teacher), {"config": describe_teacher(teacher)})
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8))
    flags = ["--set", "train={steps: 3, batch: 4, microbatch: 2}", "--set", "log.every=1", "--set", "grid.points=10",
             "--set", "evaluate={num: 4, batch: 4, features: digits}", "--set", "preview={every: 2, seeds: 0-1}",
             "--set", "checkpoint.every=2", "--set", "optimizer.clip=1.0"]

    def go(folder: str, device: str) -> None:
        where = ["--device", device, "--force"]
        for args in (["distill", "--teacher", "teacher", *flags, "--out", folder],
                     ["resume", folder, "--set", "train.steps=4"],
                     ["evaluate", folder, "--checkpoints", "--num", "4", "--out", f"{folder}/curve.json", *where],
                     ["reference", "data.npz", "--features", "digits", "--out", f"{folder}/ref.npz", "--device", device],
                     ["compare", "--teacher", "teacher", "--students", folder, "--samplers", "unipc:2", "dpm_solver:2",
                      "deis3:2", "--num", "4", "--out", f"{folder}/table", "--device", device],
                     ["sample", folder, "--seeds", "0-3", "--out", f"{folder}/a.npz", *where],
                     ["sample", "teacher", "--sampler", "ddim,eta=1:2", "--seeds", "0", "--out", f"{folder}/b.npz", *where],
                     ["trajectory", folder, "--seeds", "0", "--columns", "3", "--out", f"{folder}/c.png", *where],
                     ["evaluate", folder, "--num", "4", "--steps", "2", "--metrics", "fd,is,rms", "--features", "digits",
                      "--out", f"{folder}/d.json", *where]):
            result = cli(*args)
            assert result.code == 0, result.err

    go("cpu", "cpu")
    with AppleGPU().enter(monkeypatch) as gpu:
        go("mps", "mps")
    assert gpu.counted > 2000
    assert metrics(tmp_path / "cpu") == metrics(tmp_path / "mps") and len(metrics(tmp_path / "cpu")) == 4
    weights = [load_file(f"{name}/student/model.safetensors") for name in ("cpu", "mps")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    for file in ("a.npz", "b.npz", "c.png"):
        assert (tmp_path / "cpu" / file).read_bytes() == (tmp_path / "mps" / file).read_bytes(), file
    numbers = [json.loads((tmp_path / name / "d.json").read_text())["student"] for name in ("cpu", "mps")]
    assert all(numbers[0][key] == pytest.approx(numbers[1][key], rel=1e-9) for key in ("fd", "is", "trajectory_rmse"))
    curves = [json.loads((tmp_path / name / "curve.json").read_text())["curves"] for name in ("cpu", "mps")]
    assert curves[0] == curves[1] and len(next(iter(curves[0].values()))["runs"][0]["fd"]) == 2
    means = [np.load(f"{name}/ref.npz")["mu"] for name in ("cpu", "mps")]
    assert np.allclose(*means, rtol=1e-6) and means[0].std() > 0


def test_a_teacher_is_trained_there(cli, apple, tmp_path, images_npz):
    result = cli("train-teacher", "--set", f"data={images_npz}", "--set", "net={name: mlp, width: 8, depth: 1}",
                 "--set", "train={steps: 2, batch: 4}", "--set", "preview={every: 2, seeds: 0-1}", "--out", tmp_path / "t")
    assert result.code == 0 and apple.counted > 300, result.err
