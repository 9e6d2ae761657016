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


def graph(path, batch="B", classes=0, shape=(1, 4, 4), metadata=None, inputs=("x", "t", "labels"), types=(), batches=(),
          gives="FLOAT", extra=(), broken=False):
    """D = mean + (x - mean) s^2/(s^2 + t^2), the mean moved by 0.1 a class: single Gaussians.

    types, batches: of x, t and labels, where they are not float, float, int64 and `batch`. gives: the type of D.
    extra: names of outputs before D. broken: D is of x and t as they cannot be joined.
    """
    helper, T = onnx.helper, onnx.TensorProto
    ones = [1] * len(shape)
    node = helper.make_node
    types, batches = [*types, *["FLOAT", "FLOAT", "INT64"][len(types):]], [*batches, *[batch] * (3 - len(batches))]
    constants = {"s2": np.float32(STD**2), "m": np.float32(MEAN), "shape": np.array([-1, *ones]), "tenth": np.float32(0.1)}
    nodes = [node("Constant", [], [k], value=onnx.numpy_helper.from_array(np.asarray(v))) for k, v in constants.items()]
    nodes += [node("Cast", [name], [to], to=T.FLOAT) for name, to in zip(inputs[:2], ("x_", "t_"))]
    nodes += [node("Identity", ["t_"], ["u"]) if broken else node("Reshape", ["t_", "shape"], ["u"]),
              node("Mul", ["u", "u"], ["u2"]), node("Add", ["u2", "s2"], ["sum"]), node("Div", ["s2", "sum"], ["keep"])]
    if classes:
        nodes += [node("Cast", [inputs[2]], ["y"], to=T.FLOAT), node("Reshape", ["y", "shape"], ["y1"]),
                  node("Mul", ["y1", "tenth"], ["y2"]), node("Add", ["y2", "m"], ["mean"])]
    else:
        nodes += [node("Identity", ["m"], ["mean"])]
    nodes += [node("Sub", ["x_", "mean"], ["d"]), node("Mul", ["d", "keep"], ["k"]), node("Add", ["k", "mean"], ["D_"]),
              node("Cast", ["D_"], ["D"], to=getattr(T, gives)), *(node("Mul", ["D_", "tenth"], [name]) for name in extra)]
    takes = [helper.make_tensor_value_info(name, getattr(T, kind), [size, *sides]) for name, kind, size, sides in
             zip(inputs, types, batches, (shape, (), ()))][:3 if classes else 2]
    info = lambda name, kind: helper.make_tensor_value_info(name, getattr(T, kind), [batches[0], *shape])
    model = helper.make_model(helper.make_graph(nodes, "D", takes, [*(info(name, "FLOAT") for name in extra),
                                                                    info("D", gives)]),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
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
                         (graph(tmp_path / "d.onnx", metadata="{"), "metadata `pidistill` is no JSON: line 1, column 2: "),
                         (graph(tmp_path / "e.onnx", metadata='{"t_max": 2,}'), "column 12: .* trailing comma"),
                         (graph(tmp_path / "f.onnx", metadata="[1]"), "must be a JSON object"),
                         (graph(tmp_path / "g.onnx", metadata='{"rho": "x"}'), "its metadata `pidistill`: rho=x; an onnx"),
                         (graph(tmp_path / "h.onnx", metadata='{"classes": true}'), "`pidistill`: classes=True; an onnx"),
                         (spec + ",t_max=2,t_max=3", "t_max stands twice"),
                         (spec + ",rho=0", "rho must be a positive number"),
                         (spec + ",sigma_data=0", "sigma_data must be a positive"),
                         (spec + ",t_max=0.001", "t_min < t_max")):
        with pytest.raises(PidistillError, match=words) as error:
            load_teacher(given)
        assert "\n" not in str(error.value)
    with pytest.raises(PidistillError, match=r"student\.init=random"):
        distill(spec, out=tmp_path / "run")


# Numbers that a graph's inputs cannot hold -------------------------------------------------------------------------------

CLOSED = gaussian(f"1x4x4,mean={MEAN},std={STD}")
INTEGER_T = [{"types": ["FLOAT", kind]} for kind in ("INT64", "INT32")]


@pytest.mark.parametrize("options", [
    *INTEGER_T, {"types": ["FLOAT", "INT64", "FLOAT"], "classes": 3}, {"types": ["FLOAT16", "INT64"]},
    {"types": ["FLOAT", "INT64", "INT64"], "classes": 3, "metadata": '{"classes": 3}'}])
def test_a_whole_number_for_t_is_refused(tmp_path, options):
    """t = 0.5 would become 0."""
    words = r"t, is tensor\(int(64|32)\), and should be t, a noise level.*diffusers: or python"
    with pytest.raises(PidistillError, match=words):
        load_teacher(graph(tmp_path / "a.onnx", **options) + (",classes=3" if "classes" in options else ""))


@pytest.mark.parametrize("options, words", [
    ({"types": ["UINT8"]}, "x and t as float, float16 or double"), ({"types": ["INT64"]}, "x and t as float"),
    ({"types": ["FLOAT", "UINT8"]}, "x and t as float"), ({"types": ["BFLOAT16"]}, "bfloat16"),
    ({"types": ["FLOAT", "FLOAT", "UINT8"], "classes": 3}, "labels as int64 or int32"),
    ({"types": ["FLOAT", "FLOAT", "BOOL"], "classes": 3}, "labels as int64 or int32"),
    ({"types": ["FLOAT", "FLOAT", "FLOAT16"], "classes": 3000}, "does not hold the numbers of 3000 classes"),
    ({"batches": [4, 1]}, "of one batch"), ({"batches": [4, 4, 1], "classes": 3}, "of one batch"),
    ({"gives": "INT64"}, "D, which should be D, is tensor.int64"), ({"gives": "UINT8"}, "output=NAME")])
def test_what_would_be_cast_or_guessed_is_refused(tmp_path, options, words):
    classes = f",classes={options['classes']}" if "classes" in options else ""
    with pytest.raises(PidistillError, match=words):
        load_teacher(graph(tmp_path / "a.onnx", **options) + classes)


@pytest.mark.parametrize("kind, told", [("FLOAT16", True), ("DOUBLE", False), ("FLOAT", False)])
def test_other_decimal_numbers_are_taken_and_rounding_is_said(tmp_path, capsys, kind, told):
    teacher = load_teacher(graph(tmp_path / "a.onnx", types=[kind, kind], gives=kind))
    x, t = torch.randn(5, 1, 4, 4), torch.linspace(0.01, 5, 5)
    bound = 3e-3 if told else 1e-5  # eleven bits of numbers up to 5, of x, t and D
    torch.testing.assert_close(teacher(x, t), CLOSED(x, t), rtol=bound, atol=bound)
    assert ("x and t as float16: it sees three digits" in capsys.readouterr().err) == told


def test_float16_holds_neither_every_level_nor_every_state(tmp_path):
    path = graph(tmp_path / "a.onnx", types=["FLOAT16", "FLOAT16"])
    for facts in ("t_max=80000", "t_min=1e-7"):
        with pytest.raises(PidistillError, match="t as float16, which does not hold t from"):
            load_teacher(f"{path},{facts}")
    teacher = load_teacher(graph(tmp_path / "b.onnx", types=["FLOAT16"]) + ",t_max=40000")
    with pytest.raises(PidistillError, match="x as float16, whose largest number is 65504, and it is 80000"):
        teacher(torch.full((1, 1, 4, 4), 80000.0), 1.0)


@pytest.mark.parametrize("kind, classes", [("INT32", 3), ("FLOAT", 3), ("FLOAT16", 2049), ("DOUBLE", 3)])
def test_labels_of_other_types_are_exact(tmp_path, kind, classes):
    spec = graph(tmp_path / "a.onnx", classes=classes, types=["FLOAT", "FLOAT", kind])
    teacher = load_teacher(f"{spec},classes={classes}")
    y = torch.tensor([0, 1, classes - 1])
    D = teacher(torch.zeros(3, 1, 4, 4), 1e4, y)
    torch.testing.assert_close(D[:, 0, 0, 0], MEAN + 0.1 * y.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("batches", [(3, "B"), ("B", 3), (3, 3)])
def test_a_batch_that_one_input_fixes_is_the_graph_s(tmp_path, batches):
    teacher = load_teacher(graph(tmp_path / "a.onnx", batches=batches))
    x, t = torch.randn(7, 1, 4, 4), torch.linspace(0.01, 5, 7)
    torch.testing.assert_close(teacher(x, t), CLOSED(x, t), rtol=1e-5, atol=1e-5)


def test_of_several_outputs_the_first_is_taken_and_said_or_the_one_named(tmp_path, capsys):
    spec, x = graph(tmp_path / "a.onnx", extra=("small", "more")), torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(load_teacher(spec)(x, 1.0), 0.1 * CLOSED(x, 1.0))
    assert "of its outputs small, more, D the first is taken as D; output=NAME names another" in capsys.readouterr().err
    torch.testing.assert_close(load_teacher(f"{spec},output=D,t_max=50")(x, 1.0), CLOSED(x, 1.0))
    assert capsys.readouterr().err == ""
    with pytest.raises(PidistillError, match=r"unknown output of .* 'd' \(choices: small, more, D\)"):
        load_teacher(f"{spec},output=d")


def test_an_input_that_is_called_a_step_is_remarked_on(tmp_path, capsys):
    load_teacher(graph(tmp_path / "a.onnx", inputs=("sample", "timestep", "y")))
    assert "second input is called timestep, and is given the noise level t" in capsys.readouterr().err


def test_what_onnxruntime_raises_is_one_whole_line(tmp_path):
    spec = graph(tmp_path / "a.onnx", broken=True)
    with pytest.raises(PidistillError) as caught:
        load_teacher(spec)(torch.zeros(3, 1, 4, 4), 1.0)
    words = str(caught.value)
    assert f"the teacher {spec} failed on x (3, 1, 4, 4) float32, t = 1" in words and "\n" not in words
    assert " ".join(str(caught.value.__cause__).split()) in words and "Attempting to broadcast" in words


def test_a_file_whose_name_has_commas_is_itself(tmp_path):
    for name in ("a,b.onnx", "a.onnx,t_max=3.onnx"):
        spec = graph(tmp_path / name)
        assert load_teacher(spec).t_max == 80 and load_teacher(spec + ",t_max=20").t_max == 20
