"""Folders for diffusers, drawn from by diffusers alone: stock where that can be, else with their own code."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of, noise
from pidistill.jobs.export.base import export
from pidistill.models.exported import open_exported
from pidistill.models.student import Student
from tests.exported_students import CUSTOM, EVERY, STOCK, make
from tests.helpers import NET

pytest.importorskip("diffusers")
SEEDS = range(3)
DRAW = """
import json
from pathlib import Path
import torch
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
from safetensors.torch import load_file
root = Path(sys.argv[1])
for folder in sorted(path for path in root.iterdir() if (path / "model_index.json").exists()):
    given = load_file(root / f"{folder.name}.safetensors")
    stock = json.loads((folder / "model_index.json").read_text())["_class_name"] == "ConsistencyModelPipeline"
    pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=not stock)
    assert stock == (type(pipe) is ConsistencyModelPipeline) and stock == (not (folder / "pipeline.py").exists())
    pipe.set_progress_bar_config(disable=True)
    if stock:
        pipe.check_inputs = lambda *_, **__: None   # it wants noise of three channels
    batch = len(given["noise"])
    x = 2 * pipe(batch, given.get("labels"), latents=given["noise"], output_type="pt").images - 1
    pil = pipe(2, generator=torch.manual_seed(0)).images
    print(json.dumps([folder.name, (x - given["images"]).abs().max().item(), type(pil[0]).__name__]))
"""


def test_they_draw_without_this_package(tmp_path, stranger):
    """Every kind of student, in one fresh process that cannot import pidistill."""
    names = {name.replace(", ", "-").replace(" ", "_"): name for name in EVERY}
    for file, name in names.items():
        student = EVERY[name]()
        student.save(tmp_path / "students" / file, {"teacher": "somebody's"})
        export(str(tmp_path / "students" / file), "diffusers", tmp_path / "out" / file)
        labels = labels_of(SEEDS, student.num_classes)
        tensors = {"noise": noise(SEEDS, student.shape), "images": student.sample(SEEDS, labels)}
        save_file(tensors | ({} if labels is None else {"labels": labels}), tmp_path / "out" / f"{file}.safetensors")
        assert (tmp_path / "out" / file / "pipeline.py").exists() == (name in CUSTOM), name
    for line in stranger(DRAW, tmp_path / "out").splitlines():
        file, difference, kind = json.loads(line)
        assert difference <= 1e-4 and kind == "Image", file
        names.pop(file)
    assert not names


@pytest.mark.parametrize("name", ["epsilon, classes", "flow", "latent", "null label", "song", "song, two times",
                                  "song, states"])
def test_they_are_read_back_without_their_code(tmp_path, name):
    student = EVERY[name]()
    student.save(tmp_path / "student")
    export(str(tmp_path / "student"), "diffusers", tmp_path / "out")
    for code in (tmp_path / "out").rglob("*.py"):
        code.write_text("raise SystemExit('was run')")
    exported, labels = open_exported(tmp_path / "out"), labels_of(SEEDS, student.num_classes)
    assert (exported.shape, exported.image_shape, exported.num_classes) == (
        student.shape, student.image_shape, student.num_classes)
    torch.testing.assert_close(exported.sample(SEEDS, labels), student.sample(SEEDS, labels), rtol=0, atol=1e-4)


def test_stock_folders_hold_no_code_and_few_bytes_more(tmp_path):
    student = STOCK["v, classes"]()
    student.save(tmp_path / "student")
    export(str(tmp_path / "student"), "diffusers", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.py"))
    weights = (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert weights <= 1.1 * (tmp_path / "student" / "model.safetensors").stat().st_size


def test_bad_requests_of_a_pipeline(tmp_path):
    import diffusers

    make(NET, classes=3).save(tmp_path / "student")
    export(str(tmp_path / "student"), "diffusers", tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    for options, words in (({"class_labels": 3}, "must be 0 to 2"), ({"output_type": "jpeg"}, "must be pil, np or pt"),
                           ({"latents": torch.zeros(1, 1, 4, 4)}, "must have the shape")):
        with pytest.raises(ValueError, match=words):
            pipe(**options)
    one, two = (pipe(2, [0, 2], generator=torch.manual_seed(5), output_type="np").images for _ in range(2))
    assert one.shape == (2, 8, 8, 1) and (one == two).all()
    assert isinstance(pipe(return_dict=False), tuple)
    half = pipe.to(torch.float16)(2, [0, 2], generator=torch.manual_seed(5), output_type="np").images
    assert abs(half - one).max() < 0.1


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x, c_noise, labels=None):
        return self.layer(x)


def test_a_network_of_one_s_own_is_refused(tmp_path):
    facts = {"shape": (1, 8, 8), "num_classes": 0, "t_min": 0.02, "t_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    student = Student(Own(), {"name": "python:somewhere:Own"}, facts)
    student.save(tmp_path / "student")
    with pytest.raises(PidistillError, match="is your own, and its code cannot be written"):
        export(str(tmp_path / "student"), "diffusers", tmp_path / "out", net=Own)
    assert not (tmp_path / "out").exists()
