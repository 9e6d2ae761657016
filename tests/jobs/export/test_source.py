"""What is known of a student on its way out."""

from __future__ import annotations

import json

import pytest

from pidistill.core.errors import PidistillError
from pidistill.jobs.export._source import open_source
from tests.exported_students import make
from tests.helpers import MLP


def test_a_run_and_its_folder_are_the_same_student(tmp_path):
    make(MLP).save(tmp_path / "run" / "student", {"seed": 3})
    (tmp_path / "run" / "results.json").write_text(json.dumps({"student": {"fd": 1}}))
    for spec in (tmp_path / "run", tmp_path / "run" / "student"):
        source = open_source(str(spec))
        assert (source.provenance, source.results, source.name) == ({"seed": 3}, {"student": {"fd": 1}}, "run")
    make(MLP).save(tmp_path / "alone")
    assert open_source(str(tmp_path / "alone")).results == {} and open_source(str(tmp_path / "alone")).name == "alone"
    with pytest.raises(PidistillError, match="is a teacher"):
        open_source("bundled:digits")
