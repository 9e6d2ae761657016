"""Teacher specs KIND:REST, teacher folders, and what is said of those that cannot be loaded."""

from __future__ import annotations

import json

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder
from pidistill.models.teachers.base import describe_teacher, load_teacher
from tests.helpers import SHAPE, tiny_teacher


@pytest.fixture
def folder(tmp_path):
    teacher = tiny_teacher(t_max=40, sigma_data=0.4)
    write_folder(tmp_path / "run" / "teacher", {"model": teacher.state_dict()}, {"config": describe_teacher(teacher)})
    return tmp_path / "run" / "teacher"


def test_a_folder_gives_the_same_denoiser(folder):
    ours, x, y = tiny_teacher(t_max=40, sigma_data=0.4), torch.randn(3, *SHAPE), torch.arange(3)
    for spec in (f"folder:{folder}", str(folder), f"folder:{folder.parent}", str(folder.parent)):
        loaded = load_teacher(spec)
        assert loaded.facts() == ours.facts() and loaded.net_spec == ours.net_spec
        torch.testing.assert_close(loaded(x, 2.0, y), ours(x, 2.0, y), rtol=0, atol=0)


@pytest.mark.parametrize("spec, words", [
    ("gausian:2", "did you mean 'gaussian'"), ("nope:2", "choices: bundled, diffusers, edm, folder, gaussian"),
    ("nowhere", "kinds: bundled"),
    ("bundled:digit", "unknown bundled teacher"), ("folder:/nowhere", "holds no teacher"),
    ("python:math", "python:MODULE:FACTORY"), ("python::f", "python:MODULE:FACTORY"),
    ("python:math:3x", "python:MODULE:FACTORY"),
    ("python:no_such_module_here:f", "no_such_module_here"), ("python:math:nothing", "has no nothing"),
    ("python:..:f", "python:")])
def test_unknown_teachers_are_one_line(spec, words):
    with pytest.raises(PidistillError, match=words) as caught:
        load_teacher(spec)
    assert "\n" not in str(caught.value)


def test_unknown_options_are_refused():
    with pytest.raises(PidistillError, match="option of teachers/gaussian 'std'"):
        load_teacher("gaussian:2", std=0.1)


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | values).items() if v != "absent"}))


@pytest.mark.parametrize("values, words", [
    ({"format": "pidistill-student"}, "not a pidistill-teacher"), ({"format": "absent"}, "incomplete"),
    ({"t_max": "absent"}, "incomplete"), ({"net": {"width": 3}}, "incomplete"), ({"net": "mlp"}, "incomplete|does not fit"),
    ({"net": {"name": "nope"}}, "unknown net"), ({"shape": [1, 8, 7]}, "multiples"), ({"shape": None}, "incomplete"),
    ({"shape": "abc"}, "incomplete"), ({"t_max": -1}, "t_max"), ({"num_classes": 4}, "shape")])
def test_damaged_configurations_are_one_line(folder, values, words):
    change(folder, **values)
    with pytest.raises(PidistillError, match=words) as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 7, 300, -10])
def test_truncated_weights_are_one_line(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(PidistillError, match="truncated or not a safetensors file") as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)


def test_missing_weights_are_one_line(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(PidistillError, match="does not exist"):
        load_teacher(str(folder))


@pytest.mark.parametrize("spec", ["bundled:digits", "folder:{folder}", "{folder}"])
def test_without_weights_nothing_but_the_configuration_is_read(spec, folder):
    (folder / "model.safetensors").unlink()
    teacher = load_teacher(spec.format(folder=folder), weights=False)
    assert {tensor.device.type for tensor in (*teacher.parameters(), *teacher.buffers())} == {"meta"}
    if "{" in spec:
        full = tiny_teacher(t_max=40, sigma_data=0.4)
        assert teacher.facts() == full.facts() and teacher.net_spec == full.net_spec
        assert teacher.state_dict().keys() == full.state_dict().keys()


def test_kinds_that_read_no_weights_are_built_as_ever():
    teacher = load_teacher("gaussian:2", weights=False)
    assert teacher(torch.ones(1, 2), 1.0).device.type == "cpu"
