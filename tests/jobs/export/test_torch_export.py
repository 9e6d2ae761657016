"""Programs of torch.export: torch alone draws the student's images, whatever the number."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file

from pidistill.jobs.export.base import export
from tests.exported_students import EVERY, export_every

NAMES = ["v, classes", "song"]
MORE = ["epsilon", "flow", "sample", "edm, classes", "dhariwal", "edm2", "equilibrium", "song, states",
        "song, two times", "latent"]
RUN = """
import json
from pathlib import Path
import torch
from safetensors.torch import load_file
root = Path(sys.argv[1])
for path in sorted(root.glob("*.safetensors")):
    given = load_file(path)
    student = torch.export.load(root / path.stem / "student.pt2").module()
    worst = 0
    for part in (slice(0, 1), slice(1, 70)):
        x = student(*(given[key][part] for key in ("noise", "labels") if key in given))
        worst = max(worst, (x - given["images"][part]).abs().max().item())
    print(json.dumps([path.stem, worst]))
"""


@pytest.mark.parametrize("names", [NAMES, pytest.param(MORE, marks=pytest.mark.slow)])
def test_they_run_in_torch_alone(tmp_path, stranger, names):
    for number, given in export_every(names, "torch-export", tmp_path):
        save_file(given, tmp_path / "out" / f"{number}.safetensors")
    answers = [json.loads(line) for line in stranger(RUN, tmp_path / "out").splitlines()]
    assert len(answers) == len(names) and all(worst <= 1e-4 for _, worst in answers), answers


@pytest.mark.slow
def test_pixels_are_a_second_output(tmp_path):
    import torch

    student = EVERY["song"]()
    student.save(tmp_path / "s")
    export(str(tmp_path / "s"), "torch_export", tmp_path / "out", options={"pixels": True})
    image, pixels = torch.export.load(tmp_path / "out" / "student.pt2").module()(torch.randn(3, 1, 8, 8), torch.arange(3))
    assert pixels.dtype == torch.uint8 and pixels.shape == image.shape == (3, 1, 8, 8)
    assert pytest.approx(image.abs().max().item(), abs=1) == 0.5
