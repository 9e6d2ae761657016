"""Teachers as folders, and what is said of files without building a network."""

from __future__ import annotations

import json

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder
from pidistill.files.reading import sha256
from pidistill.files.safetensors_header import read_header
from pidistill.jobs.convert import convert
from pidistill.models.denoiser import Preconditioned
from pidistill.models.teachers.base import collect_tensors, describe_teacher, load_teacher
from tests.edm_pickles import write
from tests.helpers import NET, SHAPE, tiny_teacher
from tests.models.test_preconditioning import SPECS

KWARGS = {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]}


def pickle_of(path, class_name="EDMPrecond", **facts):
    return write(path, tiny_teacher().model, class_name, kwargs=KWARGS, augment=True, img_resolution=8, img_channels=1,
                 label_dim=3, **facts)


@pytest.mark.parametrize("class_name, facts", [
    ("EDMPrecond", {"sigma_data": 0.5}), ("VEPrecond", {"sigma_min": 0.02, "sigma_max": 100}),
    ("VPPrecond", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_min": 0.001, "sigma_max": 152.0})])
def test_a_pickle_becomes_a_folder_with_its_source_s_hash(tmp_path, class_name, facts):
    path = pickle_of(tmp_path / "net.pkl", class_name, **facts)
    teacher = load_teacher(f"edm:{path}")
    assert teacher.origin["left_out"] == ["map_augment is left out, since sampling never augments"]
    again = load_teacher(str(convert(f"edm:{path}", tmp_path / "folder")))
    x, t, y = torch.randn(3, *SHAPE), torch.tensor([0.05, 1.0, 60.0]), torch.arange(3)
    assert torch.equal(again(x, t, y), teacher(x, t, y)) and again.facts() == teacher.facts()
    provenance = json.loads((tmp_path / "folder" / "provenance.json").read_text())
    assert provenance["source"]["sha256"] == sha256(path) and provenance["source"]["licence"]


def test_teachers_of_every_preconditioning_come_back(tmp_path):
    for spec in SPECS.values():
        teacher = Preconditioned(tiny_teacher().model, SHAPE, 3, preconditioning=spec, net_spec=NET, t_min=0.02, t_max=60,
                                 guidance=2.0, null_label=0)
        folder = tmp_path / teacher.preconditioning.name
        write_folder(folder, collect_tensors(teacher), {"config": describe_teacher(teacher), "provenance": {}})
        again = load_teacher(str(folder))
        x, y = torch.randn(2, *SHAPE), torch.tensor([0, 1])
        assert torch.equal(again(x, 1.0, y), teacher.eval()(x, 1.0, y)) and again.guide == (0, 2) and again.num_classes == 2
        assert (again.times is None) == (teacher.times is None)


@pytest.mark.parametrize("dtype, kind", [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_types_of_the_file(tmp_path, dtype, kind):
    convert("bundled:digits", tmp_path / "t", dtype=dtype)
    header = read_header(tmp_path / "t" / "model.safetensors")
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {kind}
    assert {p.dtype for p in load_teacher(str(tmp_path / "t")).parameters()} == {torch.float32}


def test_black_boxes_are_refused(tmp_path):
    with pytest.raises(PidistillError, match="black box"):
        convert("gaussian:2", tmp_path / "t")
    with pytest.raises(PidistillError, match="fp32, fp16 or bf16"):
        convert("bundled:digits", tmp_path / "t", dtype="int8")
    assert not (tmp_path / "t").exists()


def test_verb(cli, tmp_path):
    done = cli("convert", "bundled:digits", "--out", tmp_path / "t")
    assert done.code == 0 and load_teacher(str(tmp_path / "t")).shape == (1, 16, 16)
    assert "--force" in cli("convert", "bundled:digits", "--out", tmp_path / "t").error()
    assert cli("convert", "bundled:digits", "--out", tmp_path / "t", "--force").code == 0
    done = cli("inspect", tmp_path / "t")
    assert done.code == 0 and "parameters" in done.out and "bundled:digits" in done.out
    pickle_of(tmp_path / "net.pkl", sigma_data=0.5)
    done = cli("inspect", tmp_path / "net.pkl")
    assert done.code == 0 and "EDMPrecond" in done.out and "SongUNet" in done.out
