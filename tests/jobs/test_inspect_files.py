"""What is said of folders and files of ours without building a network."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.jobs.inspect_files import describe_stored, shorten_net
from pidistill.models.student_init import make_student
from tests.helpers import NET, tiny_teacher


def test_a_large_file_is_described_from_its_header(tmp_path):
    """100 M parameters without reading one; a hole in the file stands for them."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [10_000, 10_000], "data_offsets": [0, 400_000_000]}}).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 400_000_000)
    began = time.process_time()
    facts = describe_stored(str(tmp_path / "big.safetensors"))
    assert facts["parameters"] == 100_000_000 and time.process_time() - began < 0.5


@pytest.mark.parametrize("content", [
    b"", b"123", b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
    (40).to_bytes(8, "little") + b'{"a": {"data_offsets": [0, 1000000]}}   '])
def test_damaged_headers_are_one_line(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(PidistillError, match="truncated or not a safetensors file"):
        describe_stored(str(tmp_path / "a.safetensors"))


def test_other_files_are_left_to_others(tmp_path):
    assert describe_stored(str(tmp_path)) is None and describe_stored(str(tmp_path / "no")) is None
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "w.safetensors")
    assert describe_stored(str(tmp_path / "w.safetensors"))["parameters"] == 6


def test_a_student_s_folder_says_what_the_student_is(tmp_path):
    student = make_student(tiny_teacher(), form="denoiser")
    student.save(tmp_path, {"teacher": "x"})
    facts = describe_stored(str(tmp_path))
    assert facts["kind"] == "student: 1 evaluation an image" and facts["network"]["name"] == NET["name"]
    assert facts["parameters"] == sum(value.numel() for value in student.state_dict().values())
    assert (facts["shape"], facts["classes"], facts["noise range"]) == ("1x8x8", 3, "0.002 to 80")
    assert facts["provenance"] == read_json(tmp_path / "provenance.json")
    config = read_json(tmp_path / "config.json")
    assert facts["form"] == config.pop("form") == "denoiser" and "form" not in describe_stored("bundled:digits")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert describe_stored(str(tmp_path))["form"] == "trajectory"  # of before there were forms
    del config["rho"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PidistillError, match="is incomplete: 'rho'"):
        describe_stored(str(tmp_path))


def test_long_lists_of_a_network_are_left_out():
    assert shorten_net({"name": "song_unet", "levels": list(range(100))}) == {"name": "song_unet"}
