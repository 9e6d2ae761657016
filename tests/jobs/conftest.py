"""A run that several jobs are tested on."""

from __future__ import annotations

import shutil
import tempfile

import pytest

from tests.runs import run_verb


@pytest.fixture(scope="session")
def image_run(tmp_path_factory):
    """A distillation of a teacher whose images the bundled features take, with three checkpoints and two EMA rates."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = run_verb("distill", "--teacher", "gaussian:1x16x16,mean=-0.5,std=0.4", "--out", folder,
                     "--set", "student={init: random, net: {name: mlp, width: 16, depth: 2}}", "--set", "evaluate.num=8",
                     "--set", "train={steps: 6, batch: 8}", "--set", "checkpoint={every: 2, keep: 5}",
                     "--set", "ema=[0.0,0.9]", "--set", "grid.points=10", "--set", "objective.distance=l1")
    assert done.returncode == 0, done.stderr[-1000:]
    return folder


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, without a screen and without a network."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                     "disable-background-networking", "disable-component-update", f"user-data-dir={profile}",
                     "window-size=1100,1400"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield chrome
        chrome.quit()
