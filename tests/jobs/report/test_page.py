"""Parts of the page: nothing in names becomes markup, large pictures become small, settings are compared by their names."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.jobs.report.gather import RunFacts, Stage
from pidistill.jobs.report.page import (
    PICTURE_LIMIT,
    encode_picture,
    flatten_settings,
    make_page,
    make_table,
    name_apart,
    thin_out,
)


def facts(folder, **changes) -> RunFacts:
    stage = Stage("run", {"train": {"steps": 2}}, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], [])
    fields = {"folder": folder, "config": {"teacher": "<script>alert(1)</script>", "objective": {"name": "pid"}},
              "stages": [stage], "results": {}, "provenance": {}, "picture": None}
    return RunFacts(**fields | changes)


def test_names_are_no_markup(tmp_path):
    page = make_page([facts(tmp_path / "<img onerror=x>")], command="<b>")
    assert "<script>alert" not in page and "<img onerror" not in page and "<code><b>" not in page
    assert page.count("<script>") == 1 and "Content-Security-Policy" in page
    assert "<b>" not in make_table(["<b>"], [["<b>", "<b>"]])


def test_large_pictures_become_small():
    noise = np.random.default_rng(0).integers(0, 256, (1200, 2000, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, format="PNG")
    assert len(content.getvalue()) > PICTURE_LIMIT
    address = encode_picture(content.getvalue())
    assert address.startswith("data:image/jpeg;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert picture.width == 1000


def test_previews_are_thinned_with_their_ends():
    assert thin_out(list(range(100)), 12)[0] == 0 and thin_out(list(range(100)), 12)[-1] == 99
    assert len(thin_out(list(range(100)), 12)) == 12 and thin_out([1, 2], 12) == [1, 2]


def test_runs_of_one_name_are_told_apart(tmp_path):
    assert list(name_apart([facts(tmp_path / "a" / "run"), facts(tmp_path / "b" / "run")])) == ["a/run", "b/run"]
    with pytest.raises(PidistillError, match="named twice"):
        name_apart([facts(tmp_path), facts(tmp_path)])


def test_settings_have_dotted_names():
    assert flatten_settings({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
