"""The documentation as a site: it builds without a network, asks for nothing, and quotes messages that the code has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pidistill.files.reading import parse_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built by a process that reaches no network; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    unreachable = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | unreachable | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


class Asked(HTMLParser):
    """Collects what a browser fetches for a page."""

    def __init__(self):
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.asked.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.asked.append(values.get("href") or "")


def test_pages_ask_for_nothing_elsewhere_and_find_what_they_show(site):
    pages = sorted(site.rglob("*.html"))
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {page.stem for page in pages}
    for page in pages:
        parser = Asked()
        parser.feed(page.read_text(encoding="utf-8"))
        for target in filter(None, parser.asked):
            if not target.startswith("data:"):
                assert "//" not in target, f"{page.name} asks for {target}"
                assert page.name == "404.html" or (page.parent / target.partition("?")[0]).exists(), f"{page.name}: {target}"


def test_code_outside_is_named_and_not_linked(site):
    text = (site / "method.html").read_text(encoding="utf-8")
    assert "objectives/pid.py" in text and "../src" not in text


def test_the_reference_has_every_public_name_with_its_words(site):
    import pidistill

    text = (site / "api.html").read_text(encoding="utf-8")
    assert all(re.search(rf"id=\"[\w.]+\.{name}\"", text) for name in pidistill.__all__ if name != "PidistillError")
    assert "Eq. (7)" in text and re.search(r"<li><code>number</code>: steps taken", text)  # parameters are lists


def test_the_search_knows_the_pages(site):
    index = parse_json((site / "search" / "search_index.json").read_bytes())
    assert {"faq.html", "method.html", "edm.html"} <= {entry["location"] for entry in index["docs"]}


def test_messages_that_are_quoted_are_the_code_s():
    """Numbers and names are filled in, the words around them are the package's."""
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    code = re.sub(r"\"\s*\\?\n?\s*f?\"", "", code)  # a text that goes on in the next line
    bold = re.findall(r"\*\*(`.*?)\*\*", (ROOT / "docs" / "faq.md").read_text())
    quoted = [words for part in bold for words in re.findall(r"`([^`]+)`", part)]
    assert len(quoted) >= 20
    for words in quoted:
        pattern = r".{1,60}?".join(re.escape(part) for part in re.split(r"\d[\d.]*", words))
        assert re.search(pattern, code), words
