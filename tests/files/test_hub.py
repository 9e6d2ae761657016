"""`hf:OWNER/NAME`: what is asked of the hub, and what is said where it cannot be had."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.hub import fetch_repository, push_folder
from pidistill.models.load import load_model
from pidistill.models.student import load_student
from tests.exported_students import make
from tests.helpers import MLP

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A hub with one repository, me/toy; gives what was asked of it."""
    student, asked = make(MLP), []
    student.save(tmp_path / "toy", {"teacher": "bundled:digits"})

    def download(name, *, revision=None, allow_patterns=None, local_files_only=False):
        asked.append((name, revision, tuple(allow_patterns), local_files_only))
        if name != "me/toy" or local_files_only:
            raise OSError("not here")
        return str(tmp_path / "toy")

    monkeypatch.setattr(hub, "snapshot_download", download)
    return student, asked


def test_a_student_comes_from_the_hub_weights_only(repository):
    student, asked = repository
    assert torch.equal(load_student("hf:me/toy").sample(range(3)), student.sample(range(3)))
    assert asked == [("me/toy", None, ("*.json", "*.safetensors"), cached) for cached in (True, False)]
    assert torch.equal(load_model("hf:me/toy,revision=v2").sample(range(3)), student.sample(range(3)))
    assert asked[-1][1] == "v2"


@pytest.mark.parametrize("spec, words", [
    ("hf:toy", "names no repository"), ("hf:", "names no repository"), ("hf:a/b/c", "names no repository"),
    ("hf:me/toy,branch=x", "unknown option of hf:OWNER/NAME 'branch'"),
    ("hf:you/toy", "cannot download you/toy (not here)")])
def test_what_cannot_be_had_is_one_line(repository, spec, words):
    with pytest.raises(PidistillError) as error:
        fetch_repository(spec)
    assert words in str(error.value)


def test_an_upload_that_fails_is_one_line(monkeypatch, tmp_path):
    class Api:
        def create_repo(self, *_, **__):
            raise PermissionError("no token")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(PidistillError, match="is written, and was not uploaded to me/toy: no token"):
        push_folder(tmp_path, "me/toy", "a message")


def test_the_library_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(PidistillError, match=r"pip install 'pidistill\[hub\]'"):
        fetch_repository("hf:me/toy")
