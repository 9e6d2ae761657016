"""What the documentation points at is there."""

from __future__ import annotations

import re

import pytest

from tests.documents import PAGES, ROOT


def test_every_promise_names_a_test_that_is_there():
    text = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"(?:([\w/]+\.py))?::(test_\w+?)(\.\.\.)?(?=`)", text)
    assert len(named) > 25
    for file, name, shortened in named:
        source = (ROOT / "tests" / (file or "system/test_interruptions.py")).read_text()
        pattern = rf"def {name}{'' if shortened else '('}".replace("(", r"\(")
        assert re.search(pattern, source), f"{file}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)  # where networks["student"](z) is no link
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    text = page.read_text()
    for name in re.findall(r"`((?:benchmarks|tests|tools|scripts|src)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists() or "NAME" in name, name
    for name in re.findall(r"python -m benchmarks\.(\w+)", text):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


def test_compatibility_names_every_class_and_key():
    """What the code accepts, and nothing that it does not know."""
    from pidistill.models.teachers import _diffusers_pipeline as pipeline
    from pidistill.models.teachers import _diffusers_schedule as schedule
    from pidistill.models.teachers.edm import KNOWN_ATTRIBUTES, PRECONDITIONINGS
    from pidistill.nets._diffusers_keys import NETWORK_KEYS

    text = (ROOT / "docs" / "compatibility.md").read_text()
    named = {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", code)}
    keys = {key for table in NETWORK_KEYS.values() for key in table} | {*schedule.SAMPLER_KEYS}
    keys |= {*schedule.REFUSED_KEYS, *schedule.FOREIGN_KEYS}
    keys |= {key for table in schedule.READ_KEYS.values() for key in table}
    classes = {*NETWORK_KEYS, *schedule.FAMILIES, *pipeline.PIPELINES, *pipeline.REFUSED_PIPELINES, *PRECONDITIONINGS}
    assert keys | classes | {*pipeline.COMPONENTS, *pipeline.HARMLESS_COMPONENTS, *KNOWN_ATTRIBUTES} <= named
    rows = text[text.index("## diffusers: schedulers"):text.index("| all others")]
    assert {*re.findall(r"\w+Scheduler\b", rows)} == {*schedule.FAMILIES}
