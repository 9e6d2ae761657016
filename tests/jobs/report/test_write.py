"""The page of a run: what it shows, that it asks for nothing, and in a browser that it works."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pidistill.core.errors import PidistillError
from pidistill.jobs.distill import distill
from pidistill.jobs.report.gather import gather_run
from pidistill.jobs.report.write import NAME, refresh_report, report
from pidistill.models.teachers.base import load_teacher

VOID = {"meta", "link", "img", "input", "line", "br"}
TINY = {"train.steps": 6, "train.batch": 4, "preview.every": 2, "preview.seeds": "0-3", "log.every": 1, "evaluate.num": 20,
        "grid.points": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with three previews."""
    folder = tmp_path_factory.mktemp("runs") / "first & best"
    distill(load_teacher("bundled:digits"), preset="digits", out=folder, overrides=TINY)
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "x.html"
    line = report([str(run)], out, data="digits", command="pidistill report <run>")
    assert str(out) in line
    return out


class Checker(HTMLParser):
    """Collects addresses, and sees that what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.alts, self.words = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.addresses += [value for key, value in given.items() if key in ("src", "href", "action", "poster", "srcset")]
        self.alts += [given.get("alt")] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words += data


def check(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text())
    assert not checker.open and all(address.startswith("data:") for address in checker.addresses)
    assert all(checker.alts) and not re.search(r"https?://", page.read_text())
    return checker


def test_the_page_shows_the_run_and_asks_for_nothing(page):
    checker = check(page)
    for words in ("first & best", "6 steps, finished", "Loss", "Loss by noise level", "loss_by_t/high", "FD %", "6 of 6",
                  "Where student and teacher differ most",
                  "From noise to image", "Nearest images of the data", "What it cost", "load_student", "config.yaml",
                  "pidistill report <run>"):
        assert words in checker.words, words
    assert len(checker.addresses) == 1 + 1 + 3 + 3  # icon, picture, previews, drawn
    assert page.stat().st_size < 3e6


def test_a_run_writes_its_page_by_itself(run):
    checker = check(run / NAME)
    assert "first & best" in checker.words and "differ most" not in checker.words


def test_an_unfinished_run_says_how_it_goes_on(run, tmp_path):
    shutil.copytree(run, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "student")
    (tmp_path / "r" / "results.json").unlink()
    report([str(tmp_path / "r")])
    words = check(tmp_path / "r" / NAME).words
    assert "not finished" in words and "pidistill resume" in words and "Nothing was measured" in words
    with pytest.raises(PidistillError, match="of a single finished run"):
        report([str(tmp_path / "r")], data="digits")


def test_several_runs_are_compared(run, tmp_path):
    shutil.copytree(run, tmp_path / "second")
    text = (tmp_path / "second" / "config.yaml").read_text()
    (tmp_path / "second" / "config.yaml").write_text(text.replace("steps: 6", "steps: 7"))
    out = tmp_path / "both.html"
    report([str(run), str(tmp_path / "second")], out)
    words = check(out).words
    assert "2 runs compared" in words and "second" in words and "train.steps" in words
    with pytest.raises(PidistillError, match="exists"):
        report([str(run), str(tmp_path / "second")], out)
    with pytest.raises(PidistillError, match="named twice"):
        report([str(run), str(run)], tmp_path / "x.html")


def test_stages_have_each_their_curves(run, tmp_path):
    whole = tmp_path / "stages"
    for name in ("1-pid", "2-pid_corrected"):
        shutil.copytree(run, whole / name)
    shutil.copy(run / "config.yaml", whole / "config.yaml")
    facts = gather_run(whole)
    assert [stage.name for stage in facts.stages] == ["1-pid", "2-pid_corrected"] and not facts.done
    report([str(whole)], tmp_path / "x.html", pictures=False)
    words = check(tmp_path / "x.html").words
    assert "1-pid: Loss" in words and "2-pid_corrected: Loss" in words and "6 + 6 steps" in words


def test_a_page_that_cannot_be_made_ends_no_run(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "r")
    (tmp_path / "r" / NAME).unlink()
    (tmp_path / "r" / "config.yaml").write_text("a: [")
    refresh_report(tmp_path / "r")
    refresh_report(tmp_path)
    assert not (tmp_path / "r" / NAME).exists() and not (tmp_path / NAME).exists()


@pytest.mark.parametrize("runs, out, words", [
    (["nowhere"], None, "holds no run"), (["RUN"], "x.txt", "must end in .html")])
def test_bad_input(run, tmp_path, runs, out, words):
    with pytest.raises(PidistillError) as error:
        report([str(run) if name == "RUN" else name for name in runs], out and tmp_path / out)
    assert words in str(error.value)


def test_the_command(run, tmp_path, cli):
    done = cli("report", run, "--no-pictures", "--out", tmp_path / "x.html")
    assert done.code == 0 and "x.html" in done.out
    assert "holds no run" in cli("report", tmp_path).error()


def test_in_a_browser(page, browser):
    browser.get_log("performance")
    browser.get(f"file://{page}")
    pictures = browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth)")
    assert len(pictures) == 7 and all(pictures)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
             and event["params"]["documentURL"].startswith("file://")]
    assert asked and all(url.startswith(("file://", "data:")) for url in asked), asked
    shown = lambda: browser.execute_script(
        "return [...document.querySelectorAll('.previews img')].filter(i => !i.hidden).map(i => i.dataset.step)")
    assert shown() == ["6"]
    browser.execute_script("const s = document.querySelector('.previews input'); s.value = 0; "
                           "s.dispatchEvent(new Event('input'))")
    assert shown() == ["2"] and browser.execute_script("return document.querySelector('output').value") == "2"


def test_it_fits_a_telephone(page, browser):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 375, "height": 800, "deviceScaleFactor": 1,
                                                                  "mobile": True})
    try:
        browser.get(f"file://{page}")
        assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [375, 375]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
