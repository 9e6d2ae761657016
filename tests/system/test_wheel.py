"""The wheel holds all that the package needs, and works where no clone is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import pidistill
from pathlib import Path
assert Path(pidistill.__file__).is_relative_to(sys.argv[1]), pidistill.__file__
from pidistill.files.folders import PRESETS
from pidistill.jobs.export.base import export
from pidistill.models.student_init import make_student
assert len(list(PRESETS.rglob("*.yaml"))) == int(sys.argv[2])
teacher = pidistill.load_teacher("bundled:digits")
make_student(teacher).save("student", {"teacher": "bundled:digits"})
print(export("student", "safetensors", Path("out")))
print(pidistill.load_student("out").sample(range(4)).shape, pidistill.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
                          capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("pidistill-*.whl"))


def test_it_holds_assets_presets_kernels_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    listing = ["git", "-C", str(ROOT), "ls-files", "src/pidistill"]
    tracked = subprocess.run(listing, capture_output=True, text=True, check=True)
    missing = {name.removeprefix("src/") for name in tracked.stdout.split()} - names
    assert not missing and "pidistill/py.typed" in names
    assert wheel.stat().st_size < 8e6


def test_it_works_without_the_clone(wheel, tmp_path):
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)  # what an installation does with a pure wheel
    presets = len(list((ROOT / "src" / "pidistill" / "presets").rglob("*.yaml")))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(target), str(presets)], capture_output=True, text=True,
                          timeout=200, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "safetensors in out" in done.stdout and "torch.Size([4, 1, 16, 16])" in done.stdout


def test_the_version_stands_in_one_place():
    import importlib.metadata

    import pidistill

    assert importlib.metadata.version("pidistill") == pidistill.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert "version:" not in (ROOT / "CITATION.cff").read_text().replace("cff-version:", "")
