"""The examples run: scripts with fewer steps, the notebook as it is, from top to bottom."""

from __future__ import annotations

import re
import runpy
import sys
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import pidistill
from tests.documents import ROOT, start_smaller

SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "until_good")  # which test_extending runs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, and scripts that train for a few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(pidistill, "distill", partial(start_smaller, pidistill.distill), raising=False)
    yield tmp_path
    sys.modules.pop("own_network", None)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_and_makes_what_it_says(script, here, capsys):
    text = script.read_text()
    assert len(text.splitlines()) <= 60 and f"python examples/{script.name}" in text.split('"""')[1]
    runpy.run_path(str(script), run_name="__main__")
    for name in re.findall(r"\w+\.png", text):
        assert (here / name).stat().st_size > 1000
    assert capsys.readouterr().out.strip()


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # none is committed: they would be of another machine
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 5
    assert (tmp_path / "exported-student" / "model.safetensors").exists()


def test_the_readme_of_the_site_names_every_example():
    named = (ROOT / "docs" / "examples.md").read_text()
    assert all(path.name in named for path in Path(ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb"))
