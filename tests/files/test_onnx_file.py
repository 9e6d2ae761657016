"""An ONNX file is looked through before native code opens it."""

from __future__ import annotations

import pytest

from pidistill.core.errors import PidistillError
from pidistill.files import onnx_file
from pidistill.files.onnx_file import check_onnx
from tests.system.fuzz.readers import onnx_model


def refused(path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PidistillError) as caught:
        check_onnx(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def field(number: int, value: bytes) -> bytes:
    """A field of bytes of a protocol buffer."""
    return bytes([number << 3 & 127 | 2 | (128 if number > 15 else 0)]) + (bytes([number >> 4]) if number > 15 else b"") \
        + bytes([len(value) & 127 | 128, len(value) >> 7]) + value


def test_models_with_weights_inside_and_beside(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx_model())
    check_onnx(path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights.bin").write_bytes(bytes(8))
    path.write_bytes(onnx_model("deep/weights.bin"))
    check_onnx(path)


@pytest.mark.parametrize("place, words", [
    ("../weights.bin", "not in the folder of the file"), ("/etc/passwd", "not in the folder of the file"),
    ("deep/../../x", "not in the folder of the file"), ("weights.bin", "is not in its folder"),
    ("link", "links out of the folder")])
def test_weights_elsewhere_are_refused(tmp_path, place, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    assert words in refused(tmp_path / "in" / "a.onnx", onnx_model(place))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.onnx"
    assert "1 to" in refused(path, b"") and "onnxruntime's own format" in refused(path, b"\0\0\0\0ORTM" + bytes(9))
    assert "no regular file" in refused(tmp_path) and "truncated" in refused(path, onnx_model()[:-3])
    assert "training graph" in refused(path, onnx_model() + field(20, b""))


def test_graphs_too_deep_or_too_large_are_refused(tmp_path, monkeypatch):
    path, inner = tmp_path / "a.onnx", b""
    for _ in range(20):  # a graph in an attribute of a node of a graph ...
        inner = field(1, field(5, field(6, inner)))
    assert "too deep in each other" in refused(path, field(7, inner))
    path.write_bytes(onnx_model())
    monkeypatch.setattr(onnx_file, "FIELDS", 10)
    assert "more than 10 fields" in refused(path)
