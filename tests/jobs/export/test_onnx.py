"""ONNX files: onnxruntime alone draws the student's images, whatever the number; they are small, and read back."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import noise
from pidistill.files.reading import read_json
from pidistill.jobs.export import onnx as onnx_format
from pidistill.jobs.export.base import export
from pidistill.models.exported import open_exported
from tests.exported_students import export_every, make, make_latent
from tests.helpers import NET

pytest.importorskip("onnxscript")
NAMES = ["epsilon, classes"]
MORE = ["flow", "sample", "v", "edm, classes", "song, states", "song, two times", "dhariwal", "edm2", "equilibrium",
        "latent"]
RUN = """
import json
from pathlib import Path
import numpy, onnxruntime
root = Path(sys.argv[1])
for path in sorted(root.glob("*.npz")):
    given = numpy.load(path)
    session = onnxruntime.InferenceSession(str(root / path.stem / "student.onnx"))
    worst = 0
    for part in (slice(0, 1), slice(1, 70)):
        feed = {node.name: given[node.name][part] for node in session.get_inputs()}
        worst = max(worst, float(abs(session.run(["image"], feed)[0] - given["images"][part]).max()))
    print(json.dumps([path.stem, worst, "torch" in sys.modules]))
"""


@pytest.mark.parametrize("names", [NAMES, pytest.param(MORE, marks=pytest.mark.slow)])
def test_they_run_in_onnxruntime_alone(tmp_path, stranger, names):
    for number, given in export_every(names, "onnx", tmp_path):
        np.savez(tmp_path / "out" / f"{number}.npz", **{key: value.numpy() for key, value in given.items()})
    answers = [json.loads(line) for line in stranger(RUN, tmp_path / "out").splitlines()]
    assert len(answers) == len(names) and all(worst <= 1e-4 and not torch for _, worst, torch in answers), answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("student")
    make(NET | {"model_channels": 64}, classes=3, scale=0.02).save(path / "s")
    return path / "s"


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """One tracing serves several tests."""
    out = tmp_path_factory.mktemp("exported") / "out"
    export(str(folder), "onnx", out, options={"pixels": True})
    return out


def test_the_file_is_little_more_than_its_weights(folder, exported):
    assert (exported / "student.onnx").stat().st_size <= 1.1 * (folder / "model.safetensors").stat().st_size


def test_pixels_are_a_second_output(folder, exported):
    from pidistill import load_student

    student = load_student(folder)
    session = onnxruntime.InferenceSession(str(exported / "student.onnx"))
    feed = {"noise": noise(range(4), student.shape).numpy(), "labels": np.array([0, 1, 2, 0])}
    image, pixels = session.run(["image", "pixels"], feed)
    assert pixels.dtype == np.uint8 and image.dtype == np.float32
    assert (pixels == (image * np.float32(127.5) + 128).clip(0, 255).astype(np.uint8)).all()


def test_no_kernel_of_ours_is_in_the_graph(exported):
    model = onnx.load(exported / "student.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"} and not model.functions
    onnx.checker.check_model(model)


def test_it_is_read_back(folder, exported):
    from pidistill import load_student

    student, again = load_student(folder), open_exported(exported)
    torch.testing.assert_close(again.sample(range(5)), student.sample(range(5)), rtol=0, atol=1e-4)
    assert (again.shape, again.image_shape, again.num_classes) == (student.shape, student.image_shape, 3)


@pytest.mark.slow
@pytest.mark.parametrize("precision, size, rms", [("fp16", 0.6, 5e-3), ("int8", 0.4, 0.05)])
def test_smaller_types_state_their_error(folder, tmp_path, precision, size, rms):
    export(str(folder), "onnx", tmp_path / "out", options={"precision": precision})
    parity = read_json(tmp_path / "out" / "parity.json")
    assert 1e-5 < parity["rms"] < rms and parity["precision"] == precision
    whole = (folder / "model.safetensors").stat().st_size
    assert (tmp_path / "out" / "student.onnx").stat().st_size < size * whole
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "student.onnx"))
    assert [node.type for node in session.get_inputs()] == ["tensor(float)", "tensor(int64)"]


@pytest.mark.slow
def test_latents_carry_their_decoder(tmp_path):
    make_latent().save(tmp_path / "s")
    export(str(tmp_path / "s"), "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "student.onnx"))
    feed = {"noise": np.zeros((2, 4, 8, 8), np.float32), "labels": np.array([0, 1])}
    assert session.run(["image"], feed)[0].shape == (2, 3, 16, 16)


def test_what_is_missing_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(PidistillError, match=r"onnxscript, which is not installed: pip install 'pidistill\[onnx\]'"):
        export(str(folder), "onnx", tmp_path / "out")


def test_what_cannot_be_traced_is_one_line(folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(PidistillError, match="cannot be written as ONNX: RuntimeError: no such operator and more"):
        export(str(folder), "onnx", tmp_path / "out")
    with pytest.raises(KeyError), onnx_format.quiet():
        raise KeyError("x")
