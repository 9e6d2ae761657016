"""Folders of models whose configurations are damaged, and graphs that onnxruntime is given: one line, or a sound model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder
from pidistill.jobs.inspect_files import describe_stored
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import describe_teacher, load_teacher
from tests.helpers import MLP, tiny_teacher
from tests.system.fuzz.mutate import CHANGES, DAMAGE, changed, damaged
from tests.system.fuzz.test_readers import fuzz, one_line

FEW, MANY = 100, 2000
AMOUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.fixture(params=["student", "teacher"])
def model(request, tmp_path):
    """(folder, how it is loaded, parameters)."""
    teacher = tiny_teacher(MLP)
    if request.param == "student":
        make_student(teacher).save(tmp_path / "m")
        return tmp_path / "m", load_student
    write_folder(tmp_path / "m", {"model": teacher.state_dict()}, {"config": describe_teacher(teacher), "provenance": {}})
    return tmp_path / "m", lambda folder: load_teacher(str(folder))


def size(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("examples", AMOUNTS)
def test_damaged_configurations(model, examples):
    folder, load = model
    path, expected, lines = folder / "config.json", size(load(folder)), []
    whole = json.loads(path.read_text())

    @fuzz(examples)
    @given(CHANGES)
    def change(how):
        path.write_text(json.dumps(changed(whole, how)))
        lines.append(one_line(lambda: load(folder), lambda model: size(model) == expected))
        one_line(lambda: describe_stored(str(folder)))

    change()
    assert any(lines)


@pytest.mark.parametrize("examples", AMOUNTS)
def test_damaged_weights(model, examples):
    folder, load = model
    path, expected, lines = folder / "model.safetensors", size(load(folder)), []
    whole = path.read_bytes()

    @fuzz(examples)
    @given(DAMAGE)
    def damage(how):
        path.write_bytes(damaged(whole, whole, how))
        lines.append(one_line(lambda: load(folder), lambda model: size(model) == expected))

    damage()
    assert any(lines)


@pytest.mark.parametrize("net", [
    {"name": "mlp", "width": 10**6}, {"name": "mlp", "width": 10**12}, {"name": "mlp", "depth": 10**9},
    {"name": "mlp", "octaves": 10**9},
    {"name": "song_unet", "model_channels": 10**5}, {"name": "song_unet", "num_blocks": 10**8},
    {"name": "dhariwal_unet", "model_channels": 64 * 10**3}, {"name": "edm2_unet", "model_channels": 64 * 10**3},
    {"name": "edm2_unet", "num_blocks": 10**8}, {"name": "mlp", "width": 10**400}], ids=str)
def test_networks_larger_than_their_weights_are_refused_before_they_are_made(model, net):
    folder, load = model
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"net": net}))
    assert one_line(lambda: load(folder))


@pytest.mark.parametrize("change", [
    {"shape": [10**5] * 3}, {"num_classes": 10**9}, {"t_max": 1e300}, {"shape": [1, 8.0, 8]}, {"sigma_data": 0},
    {"rho": None}, {"preconditioning": {"name": "iddpm", "M": 10**9}},
    {"preconditioning": {"name": "epsilon", "sigmas": [[1], [2]]}}], ids=str)
def test_impossible_facts_are_refused(model, change):
    folder, load = model
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert one_line(lambda: load(folder))


@pytest.mark.parametrize("name", ["../../m", "..", "a/b", "\0", "/etc", "a\nb"])
def test_names_that_are_paths_are_refused(name, tmp_path, monkeypatch):
    from pidistill.core.registry import find_member
    from pidistill.evaluation.references import load_reference
    from pidistill.models.load import load_model
    from pidistill.nets.features.base import load_features
    from pidistill.training.config import DistillConfig
    from pidistill.training.config_file import load_config

    (tmp_path / "empty" / "here").mkdir(parents=True)  # else `..` holds what other tests have left
    monkeypatch.chdir(tmp_path / "empty" / "here")
    monkeypatch.setattr("pidistill.files.downloads.download", lambda *_: pytest.fail("something was fetched"))
    for use in (lambda: load_teacher(f"bundled:{name}"), lambda: load_teacher(f"edm:{name}"),
                lambda: find_member("nets", name), lambda: load_features(name), lambda: load_reference(name, "digits", None),
                lambda: load_config(DistillConfig, name), lambda: load_model(f"bundled:{name}"),
                lambda: load_teacher(f"python:{name}:f")):
        assert one_line(use)
    assert describe_stored(f"bundled:{name}") is None


def test_a_file_does_not_decide_what_runs(tmp_path, monkeypatch):
    """A student's provenance may name Python code as its teacher; only the user's own word runs it."""
    from pidistill.models.load import load_pair

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')\nraise SystemExit('executed')")
    make_student(tiny_teacher(MLP)).save(tmp_path / "s", {"teacher": "python:evil:run"})
    assert "say --teacher python:evil:run" in (one_line(lambda: load_pair("s")) or "")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(PidistillError, match="cannot be imported: SystemExit: executed"):
        load_pair("s", "python:evil:run")


@pytest.mark.parametrize("examples", AMOUNTS)
def test_damaged_pipelines_of_diffusers(examples, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from tests.models.teachers.test_diffusers import ddim, save

    assert diffusers
    spec, folder, lines = save(tmp_path / "p", ddim()), tmp_path / "p", []
    files = [folder / name for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json")]
    whole = [json.loads(path.read_text()) for path in files]
    load_teacher(spec)

    @fuzz(examples // 2)
    @given(CHANGES)
    def change(how):
        for k, path in enumerate(files):
            path.write_text(json.dumps(changed(whole[k], how) if how[0][0] % 3 == k else whole[k]))
        lines.append(one_line(lambda: load_teacher(spec)))

    change()
    assert any(lines)


@pytest.mark.parametrize("file, change", [
    ("unet/config.json", {"layers_per_block": 10**9}), ("unet/config.json", {"time_embedding_type": 3}),
    ("unet/config.json", {"block_out_channels": [10**6, 10**6]}), ("unet/config.json", {"quantization_config": {}}),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}), ("model_index.json", {"unet": ["a", ["b"]]}),
    ("model_index.json", {"unet": 5})], ids=str)
def test_pipelines_that_cannot_be_meant(file, change, tmp_path):
    pytest.importorskip("diffusers")
    from tests.models.teachers.test_diffusers import ddim, edit, save

    spec = save(tmp_path / "p", ddim())
    edit(tmp_path / "p" / file, **change)
    assert one_line(lambda: load_teacher(spec))


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b", "", 3, "..", "a\0b"])
def test_parts_of_a_pipeline_lie_in_its_folder(name, tmp_path):
    pytest.importorskip("diffusers")
    from tests.models.teachers.test_diffusers import ddim, save

    spec = save(tmp_path / "p", ddim())
    weights = tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "p" / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
    Path(f"{weights}.index.json").write_text(json.dumps(index))
    assert "names of files in the same folder" in (one_line(lambda: load_teacher(spec)) or "")


CHILD = """
import sys
from pathlib import Path
import torch
from hypothesis import given
from hypothesis import strategies as st
from pidistill.core.errors import PidistillError
from pidistill.models.teachers.base import load_teacher
from tests.system.fuzz.mutate import DAMAGE, damaged
from tests.system.fuzz.readers import onnx_model
from tests.system.fuzz.test_readers import fuzz, one_line
folder, examples = Path(sys.argv[1]), int(sys.argv[2])
whole = [onnx_model(), (folder / "whole.onnx").read_bytes()]
lines = []

def use():
    teacher = load_teacher(f"onnx:{folder / 'a.onnx'}")
    assert teacher(torch.zeros(2, *teacher.shape), torch.ones(2)).shape == (2, *teacher.shape)

@fuzz(examples)
@given(st.sampled_from(whole), st.sampled_from(whole), DAMAGE)
def damage(one, other, how):
    (folder / "a.onnx").write_bytes(damaged(one, other, how))
    lines.append(one_line(use))

damage()
assert sum(map(bool, lines)) > len(lines) // 4
"""


@pytest.mark.parametrize("examples", AMOUNTS)
def test_damaged_graphs(examples, tmp_path):
    """In a process of its own: onnxruntime is native code."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from tests.models.teachers.test_onnx import graph

    graph(tmp_path / "whole.onnx", shape=(2,))
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(examples)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "whole.onnx"]
