"""What others wrote is read whole, or refused in one line."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from pidistill.core.errors import PidistillError
from pidistill.files.reading import DEPTH, open_file, parse_json, read_bytes, read_json, sha256
from pidistill.files.weights import read_tensors


@pytest.mark.parametrize("text, words", [("{", "cannot read"), ("[1]", "expected a JSON object"), ("\xff", "cannot read")])
def test_bad_json_is_one_line(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(PidistillError, match=words):
        read_json(path)


def test_missing_files_are_one_line(tmp_path):
    for read in (read_json, read_tensors):
        with pytest.raises(PidistillError, match="does not exist"):
            read(tmp_path / "a")
        with pytest.raises(PidistillError, match="cannot read"):
            read(tmp_path)


def test_no_more_than_the_limit_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(PidistillError, match="5 bytes, more than the 4 that such a file may have"):
        read_bytes(path, 4)
    with pytest.raises(PidistillError, match="cannot read"):
        read_bytes(tmp_path / "a\0b", 5)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            open_file(path)
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"1"


def test_json_is_what_it_says():
    assert parse_json('{"a": [1, 2.5, null, true, "\\u00e9"]}') == {"a": [1, 2.5, None, True, "é"]}
    assert parse_json('"é"'.encode()) == "é"
    nest = lambda depth: "[" * depth + "]" * depth
    assert parse_json(nest(DEPTH)) is not None
    for text, words in (('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"), (nest(DEPTH + 1), "too deep"),
                        (nest(10**5), "too deep"), ("[1,]", "Expecting"), ("", "Expecting"), (b"\xff", "decode")):
        with pytest.raises(ValueError, match=words):
            parse_json(text)


@pytest.mark.parametrize("text, line, column, words", [
    ('{"a": 1,\n}', 1, 8, "trailing comma"), ('{\n "a": [1, 2,\n  ],\n "b": 1\n}', 2, 12, "trailing comma"),
    ("[1 , ]", 1, 4, "trailing comma"),
    ("{'a': 1}", 1, 2, "double quotes"), ("{\n// no\n}", 2, 1, "property name"), ('{"a": 1 "b": 2}', 1, 9, "',' delimiter"),
    ('{"a": True}', 1, 7, "value"), ('{"a": 1}\nx', 2, 1, "Extra data"), ('{"a": "b\n"}', 1, 9, "Invalid control character"),
    ('{"a": "\\q"}', 1, 8, "escape"), ('{"a": "b', 1, 7, "Unterminated"), ("", 1, 1, "Expecting"),
    (b"\n\xff", 2, 1, "decode"),
    (b"\xff\xfe[\0]\0", 1, 1, "UTF-16"), ('{"a": 1,\n "b": {"c": 1,\n  "c": 2}}', 3, 3, "the key 'c' stands twice"),
    ('{"\\u0061": [{"a": 1}], "a": ":"}', 1, 24, "the key 'a' stands twice"),
    ("\n" + "[" * 10**5, 2, DEPTH + 1, "too deeply"),
    ("[" * DEPTH + "1" + "]" * DEPTH, 1, DEPTH + 1, "too deeply"), ('{"a":\n ' + "9" * 5000 + "}", 2, 2, "5000 digits")])
def test_mistakes_have_line_and_column(tmp_path, text, line, column, words):
    with pytest.raises(ValueError, match=rf"^line {line}, column {column}: .*{words}"):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PidistillError, match=rf"cannot read .*a\.json: line {line}, column {column}: .*{words}"):
        read_json(tmp_path / "a.json")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("name", ["model_index.json", "config.json", "provenance.json"])
def test_every_json_that_a_user_may_edit_names_the_place(tmp_path, name):
    """Readers of the package go through `read_json`; here through what a user calls."""
    from pidistill.models.load import load_model, read_teacher_spec

    (tmp_path / "config.json").write_text('{"format": "pidistill-student"}')
    (tmp_path / name).write_text('{\n "format": "pidistill-student",\n}')
    calls = {"model_index.json": lambda: load_model(f"diffusers:{tmp_path}"),
             "config.json": lambda: load_model(str(tmp_path)), "provenance.json": lambda: read_teacher_spec(str(tmp_path))}
    with pytest.raises(PidistillError, match=rf"{name}: line 2, column 31: "):
        calls[name]()


def test_no_module_parses_json_by_itself():
    """So that every mistake has its place; a manifest is the package's own, and checked byte for byte."""
    import pidistill

    root = Path(pidistill.__file__).parent
    users = {path.relative_to(root).as_posix() for path in root.rglob("*.py")
             if re.search(r"json\.loads?\(", path.read_text())}
    assert users == {"files/reading.py", "files/manifest.py"}


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100_000))
    assert sha256(tmp_path / "a") == hashlib.sha256(bytes(100_000)).hexdigest()


def test_what_git_has_not_fetched_is_said(tmp_path):
    """A clone without Git LFS has a text in the place of every large file."""
    from pidistill.evaluation.references import load_reference
    from pidistill.files.datasets import open_images
    from pidistill.files.onnx_file import check_onnx
    from pidistill.files.safetensors_header import read_header
    from pidistill.files.weights import read_contents
    from pidistill.models.teachers.base import load_teacher

    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, read in {"a.safetensors": read_header, "a.onnx": check_onnx, "a.json": read_json, "a.zip": open_images,
                       "a.npz": lambda path: load_reference(str(path), "inception", None),
                       "b.pkl": lambda path: load_reference(str(path), "inception", None),
                       "a.pkl": lambda path: load_teacher(f"edm:{path}"), "a.pt": read_contents, "a.ckpt": read_contents,
                       "pictures/a.png": lambda path: open_images(path.parent)}.items():
        (tmp_path / name).write_bytes(text)
        with pytest.raises(PidistillError, match=f"{re.escape(name)} is a Git LFS pointer.*`git lfs pull`"):
            read(tmp_path / name)
