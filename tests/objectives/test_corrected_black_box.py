"""The correction of a black box: the bundled digits as an ONNX file, which is asked for answers alone."""

from __future__ import annotations

import warnings

import pytest
import torch

from pidistill.evaluation.measure import Measure
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.onnx import ONNXDenoiser
from tests.runs import train_student

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SEEDS = range(10**6, 10**6 + 1000)
NET = {"name": "mlp", "width": 256, "depth": 3}


class Answers(torch.nn.Module):
    """The denoiser of a teacher as a graph's function."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, x, t, labels):
        return self.teacher.denoise(x, t, labels)


def export(teacher, path) -> str:
    """Write a teacher as a graph of x, t and labels, of any batch; gives its spec."""
    example = torch.randn(2, *teacher.shape), torch.tensor([0.5, 5.0]), torch.tensor([1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Answers(teacher), example, path, input_names=["x", "t", "labels"], output_names=["D"],
                          dynamo=False, opset_version=17,
                          dynamic_axes={name: {0: "B"} for name in ("x", "t", "labels", "D")})
    return f"onnx:{path},classes={teacher.num_classes}"


@pytest.mark.slow
def test_the_correction_lowers_fd(tmp_path):
    """FD against the data, of 1,000 images from seeds that no training has."""
    bundled = load_teacher("bundled:digits")
    teacher = load_teacher(export(bundled, tmp_path / "digits.onnx"))
    assert isinstance(teacher, ONNXDenoiser)
    x, t, y = torch.randn(5, *teacher.shape), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0]), torch.arange(5)
    torch.testing.assert_close(teacher(x, t, y), bundled(x, t, y), rtol=1e-4, atol=1e-4)
    measure = Measure("digits", None, teacher.shape)

    common = {"teacher": teacher.spec, "grid.points": 100, "optimizer.clip": 1.0, "optimizer.decay": "cosine",
              "train.batch": 32}
    student = train_student(tmp_path / "pid", teacher, common | {
        "student": {"init": "random", "net": NET}, "train.steps": 120, "optimizer.lr": 3e-3})
    before = measure(student.sample(SEEDS))["fd"]
    objective = {"name": "pid_corrected", "fake": "bundled:digits", "share": 1.0, "fake_steps": 2, "level_max": 14.0,
                 "fake_optimizer": {"lr": 2e-3, "betas": (0.9, 0.99), "decay": "constant", "warmup": 0}}
    student = train_student(tmp_path / "corrected", teacher, common | {
        "student.init": str(tmp_path / "pid" / "student"), "train.steps": 80, "optimizer.name": "adam",
        "optimizer.lr": 1e-3, "optimizer.warmup": 20, "objective": objective})
    after = measure(student.sample(SEEDS))["fd"]
    print(f"FD {before:.2f} % with PID, {after:.2f} % corrected")
    assert after < 0.8 * before
