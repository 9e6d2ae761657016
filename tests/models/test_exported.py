"""Exported students read back: what they draw, and what is refused in one line, with nothing of it executed."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from pidistill.core.errors import PidistillError
from pidistill.evaluation.subject import Subject
from pidistill.jobs.compare import compare
from pidistill.jobs.export.base import export
from pidistill.models.exported import METADATA, names_exported, open_exported
from tests.exported_students import STOCK, make
from tests.helpers import NET

RECORD = {"shape": [1, 8, 8], "image_shape": [1, 8, 8], "classes": 0}


def graph(path, record=RECORD, inputs=("noise",), output="image", side=8):
    """A graph that gives half of its noise."""
    of = lambda name, kind=TensorProto.FLOAT, shape=("B", 1, side, side): helper.make_tensor_value_info(name, kind, shape)
    nodes = [helper.make_node("Mul", ["noise", "half"], [output])]
    values = [of("noise"), of("labels", TensorProto.INT64, ("B",))][:len(inputs)]
    model = helper.make_model(helper.make_graph(nodes, "g", values, [of(output)], [
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])]), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    if record is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA, record if isinstance(record, str) else json.dumps(record)
    onnx.save(model, path)
    return path


def test_a_graph_draws_from_the_seeds_noise(tmp_path):
    from pidistill.core.seeds import noise

    exported = open_exported(graph(tmp_path / "student.onnx"))
    assert torch.equal(exported.sample([3, 4], clip=False), noise([3, 4], (1, 8, 8)) / 2)
    assert exported.sample([3, 4]).abs().max() <= 1 and names_exported(tmp_path)
    subject = Subject.of(exported)
    subject.run([0, 1, 2], None)
    assert subject.calls == 1 and subject.settings["exported"] and len(subject.settings["weights"]) == 64


@pytest.mark.parametrize("record, options, words", [
    (None, {}, "is no exported student: its metadata have no"),
    ("{", {}, "is no exported student"), ("[]", {}, "is no exported student"),
    ({"shape": [1, 8, 8]}, {}, "KeyError"),
    (RECORD | {"shape": [1, -8, 8]}, {}, "a shape in it is"), (RECORD | {"shape": [2**20, 2**20]}, {}, "a shape in it is"),
    (RECORD | {"classes": -1}, {}, "its number of classes is -1"),
    (RECORD | {"classes": 3}, {}, "its inputs are"), (RECORD, {"inputs": ("noise", "labels")}, "its inputs are"),
    (RECORD, {"output": "x"}, "no output called image")])
def test_a_wrong_graph_is_one_line(tmp_path, record, options, words):
    with pytest.raises(PidistillError) as error:
        open_exported(graph(tmp_path / "g.onnx", record, **options))
    assert words in str(error.value)


def test_a_graph_of_another_size_fails_in_one_line(tmp_path):
    exported = open_exported(graph(tmp_path / "g.onnx", side=4))
    with pytest.raises(PidistillError, match=r"g.onnx failed on x \(2, 1, 8, 8\)"):
        exported.sample([0, 1])


def test_damaged_files_are_one_line(tmp_path):
    path = graph(tmp_path / "student.onnx")
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(PidistillError, match="cannot read"):
            open_exported(path)


@pytest.fixture
def pipeline(tmp_path):
    pytest.importorskip("diffusers")
    STOCK["epsilon, classes"]().save(tmp_path / "s")
    export(str(tmp_path / "s"), "diffusers", tmp_path / "p")
    return tmp_path / "p"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("file, changes, words", [
    ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "and no exported student"),
    ("model_index.json", {"_class_name": ["os", "system"]}, "and no exported student"),
    ("scheduler/scheduler_config.json", {"sigma_max": -1}, "its scheduler has"),
    ("scheduler/scheduler_config.json", {"sigma_data": "x"}, "ValueError"),
    ("unet/config.json", {"sample_size": 10**9}, "a shape in it is"),
    ("unet/config.json", {"block_out_channels": [4096, 4096]}, "weights"),
    ("unet/config.json", {"down_block_types": ["os.system"]}, "")])
def test_a_wrong_pipeline_is_one_line(pipeline, file, changes, words):
    edit(pipeline / file, **changes)
    with pytest.raises(PidistillError) as error:
        open_exported(pipeline)
    assert words in str(error.value)


def test_weights_that_do_not_fit_are_refused(pipeline):
    save_file({"conv_in.weight": torch.zeros(3)}, pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(PidistillError):
        open_exported(pipeline)
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x80\x04\x95")
    with pytest.raises(PidistillError):
        open_exported(pipeline)


@pytest.mark.parametrize("changes", [{"a": float("nan")}, {"states": 0}, {"net": "os"}, {"shape": "x"}, {"classes": 10**9},
                                     {"clock": []}, {"null": "x"}])
def test_a_wrong_step_is_one_line(tmp_path, changes):
    pytest.importorskip("diffusers")
    make(NET, classes=3).save(tmp_path / "s")
    export(str(tmp_path / "s"), "diffusers", tmp_path / "p")
    index = json.loads((tmp_path / "p" / "model_index.json").read_text())
    edit(tmp_path / "p" / "model_index.json", step=index["step"] | changes)
    with pytest.raises(PidistillError):
        open_exported(tmp_path / "p")


def test_compare_takes_what_was_exported(tmp_path):
    pytest.importorskip("diffusers")
    from pidistill import load_teacher
    from pidistill.models.student_init import make_student

    teacher = load_teacher("bundled:digits")
    make_student(teacher).save(tmp_path / "own", {"teacher": "bundled:digits"})
    export(str(tmp_path / "own"), "diffusers", tmp_path / "pipeline")
    files = compare("bundled:digits", [str(tmp_path / "own"), str(tmp_path / "pipeline")], [], tmp_path / "out",
                    features="digits", num=20)
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert [row["nfe"] for row in rows] == [1, 1] and files
    assert rows[0]["fd"] == pytest.approx(rows[1]["fd"], rel=1e-3)
    with pytest.raises(PidistillError, match=r"the teacher gives \(1, 16, 16\) in 10 classes"):
        compare("bundled:digits", [str(graph(tmp_path / "other.onnx"))], [], tmp_path / "x", features="digits", num=4)


def test_labels_reach_the_graph(tmp_path):
    exported = open_exported(graph(tmp_path / "g.onnx", RECORD | {"classes": 2}, inputs=("noise", "labels")))
    assert exported.num_classes == 2
    with pytest.raises(PidistillError, match="label 2 is outside"):
        exported.sample([0], 2)
    assert np.isfinite(exported.sample([0], 1).numpy()).all()


def test_other_verbs_say_what_it_is(tmp_path, cli):
    graph(tmp_path / "student.onnx")
    for path in (tmp_path, tmp_path / "student.onnx"):
        assert "is an exported student" in cli("sample", path, "--out", tmp_path / "x.png").error()
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    assert not names_exported(tmp_path / "pipeline")
