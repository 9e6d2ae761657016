"""What others wrote is read whole, or refused in one line."""

from __future__ import annotations

import hashlib
import os

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


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100_000))
    assert sha256(tmp_path / "a") == hashlib.sha256(bytes(100_000)).hexdigest()
