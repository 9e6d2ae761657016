"""A teacher that is an ONNX file: its answers, its facts, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.jobs.distill import distill
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.gaussian import gaussian

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
MEAN, STD = 0.3, 0.5


def graph(path, batch="B", classes=0, shape=(1, 4, 4), metadata=None, inputs=("x", "t", "labels")):
    """D = mean + (x - mean) s^2/(s^2 + t^2), the mean moved by 0.1 a class: single Gaussians."""
    helper, T = onnx.helper, onnx.TensorProto
    ones = [1] * len(shape)
    node = helper.make_node
    constants = {"s2": np.float32(STD**2), "m": np.float32(MEAN), "shape": np.array([-1, *ones]), "tenth": np.float32(0.1)}
    nodes = [node("Constant", [], [k], value=onnx.numpy_helper.from_array(np.asarray(v))) for k, v in constants.items()]
    nodes += [node("Reshape", [inputs[1], "shape"], ["u"]), node("Mul", ["u", "u"], ["u2"]),
              node("Add", ["u2", "s2"], ["sum"]), node("Div", ["s2", "sum"], ["keep"])]
    if classes:
        nodes += [node("Cast", [inputs[2]], ["y"], to=T.FLOAT), node("Reshape", ["y", "shape"], ["y1"]),
                  node("Mul", ["y1", "tenth"], ["y2"]), node("Add", ["y2", "m"], ["mean"])]
    else:
        nodes += [node("Identity", ["m"], ["mean"])]
    nodes += [node("Sub", [inputs[0], "mean"], ["d"]), node("Mul", ["d", "keep"], ["k"]), node("Add", ["k", "mean"], ["D"])]
    takes = [helper.make_tensor_value_info(inputs[0], T.FLOAT, [batch, *shape]),
             helper.make_tensor_value_info(inputs[1], T.FLOAT, [batch])]
    takes += [helper.make_tensor_value_info(inputs[2], T.INT64, [batch])] if classes else []
    gives = [helper.make_tensor_value_info("D", T.FLOAT, [batch, *shape])]
    model = helper.make_model(helper.make_graph(nodes, "D", takes, gives), opset_imports=[helper.make_opsetid("", 17)],
                              ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {"pidistill": metadata})
    onnx.save(model, path)
    return f"onnx:{path}"


@pytest.mark.parametrize("batch", ["B", 3])
def test_answers_are_the_graph_s_at_any_batch(tmp_path, batch):
    teacher = load_teacher(graph(tmp_path / "a.onnx", batch))
    expected = gaussian(f"1x4x4,mean={MEAN},std={STD}")
    x, t = torch.randn(7, 1, 4, 4), torch.linspace(0.01, 5, 7)
    torch.testing.assert_close(teacher(x, t), expected(x, t), rtol=1e-5, atol=1e-5)
    assert teacher.shape == (1, 4, 4) and (teacher.t_min, teacher.t_max, teacher.num_classes) == (0.002, 80, 0)
    assert len(teacher.origin["sha256"]) == 64


def test_classes_and_facts_of_the_file_and_the_spec(tmp_path):
    facts = json.dumps({"classes": 4, "t_max": 50, "sigma_data": 0.6})
    spec = graph(tmp_path / "a.onnx", classes=4, metadata=facts, inputs=("image", "noise", "class"))
    teacher = load_teacher(spec + ",t_max=60")
    assert (teacher.num_classes, teacher.t_max, teacher.sigma_data) == (4, 60, 0.6)
    D = teacher(torch.zeros(4, 1, 4, 4), torch.full((4,), 50.0), torch.arange(4))
    torch.testing.assert_close(D[:, 0, 0, 0], MEAN + 0.1 * torch.arange(4.0), rtol=1e-3, atol=1e-3)


def test_distillation_lowers_the_loss(tmp_path):
    spec = graph(tmp_path / "a.onnx")
    student = distill(spec, out=tmp_path / "run", overrides={
        "student.init": "random", "student.net": {"name": "mlp", "width": 32}, "train.steps": 60, "train.batch": 32,
        "optimizer.lr": 1e-2, "ema": 0.5, "log.every": 1, "evaluate.num": 4, "grid.points": 40})
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10]) and student.sample(range(2)).shape == (2, 1, 4, 4)


def test_what_is_no_denoiser_is_one_line(tmp_path):
    spec = graph(tmp_path / "a.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    for given, words in ((f"onnx:{tmp_path / 'no.onnx'}", "does not exist"),
                         (f"onnx:{tmp_path / 'bad.onnx'}", "cannot read"), (spec + ",t_mx=3", "keys t_min"),
                         (spec + ",t_max=big", "keys t_min"), (spec + ",classes=3", "labels"),
                         (graph(tmp_path / "b.onnx", classes=2), "say classes=N"),
                         (graph(tmp_path / "c.onnx", shape=("C", 4, 4)), "must be fixed"),
                         (graph(tmp_path / "d.onnx", metadata="{"), "keys t_min"), (spec + ",t_max=0.001", "t_min < t_max")):
        with pytest.raises(PidistillError, match=words) as error:
            load_teacher(given)
        assert "\n" not in str(error.value)
    with pytest.raises(PidistillError, match=r"student\.init=random"):
        distill(spec, out=tmp_path / "run")
