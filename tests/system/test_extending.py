"""The examples of docs/extending.md are complete, short, and run."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pidistill.files.reading import read_json
from pidistill.training.log import read_metrics
from tests.helpers import start

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^(pidistill .*)$", PAGE, re.MULTILINE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the examples, under the names that the page gives them."""
    for name, text in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def test_examples_are_short():
    assert EXAMPLES.keys() == {"until_good", "endpoint", "stripes", "edges", "adams"}
    assert {name: len(text.splitlines()) for name, text in EXAMPLES.items() if len(text.splitlines()) >= 40} == {}
    loop = EXAMPLES["until_good"].split("for step", 1)[1]
    assert len(loop.splitlines()) <= 6
    assert (ROOT / "examples" / "until_good.py").read_text().endswith(EXAMPLES["until_good"])


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: re.search(r"\w+:\w+", line)[0].replace(":", "-"))
def test_commands_run(here, cli, line):
    done = cli(*shlex.split(line)[1:])
    assert done.code == 0, done.err
    if " inspect " in line:
        assert "wrong" not in done.out and done.out.count("ok") >= 3
    if " distill " in line:
        losses = [record["loss"] for record in read_metrics(here / line.split()[-1]) if "loss" in record]
        assert losses and losses[-1] < 20


def test_the_endpoint_is_learnt(here, cli):
    """The student comes nearer to the teacher's images, of seeds that were not trained on."""
    flags = ["--teacher", "python:stripes:Stripes", "--set", "student={init: random, net: mlp}", "--set",
             "optimizer.lr=2e-3", "--set", "objective=python:endpoint:Endpoint", "--set",
             "train.batch=64", "--set", "evaluate.num=100"]
    rms = []
    for steps in (1, 100):
        assert cli("distill", *flags, "--set", f"train.steps={steps}", "--set", "ema=0", "--out", "x", "--force").code == 0
        rms.append(read_json(here / "x" / "results.json")["student"]["trajectory_rmse"])
    assert rms[1] < 0.5 * rms[0]


def test_the_sampler_is_of_second_order(here, gaussian):
    adams = runpy.run_path("adams.py")["adams"]

    def error(n: int) -> float:
        z, ts = start((2,)), torch.linspace(np.log(80), np.log(0.002), n + 1, dtype=torch.float64).exp()
        *_, (t, x) = adams(gaussian, z, ts)
        return (x - gaussian.exact(z, t)).abs().max().item()

    assert np.log2(error(256) / error(512)) == pytest.approx(2, abs=0.2)


def test_the_hook_stops_the_run(here, monkeypatch):
    """As on the page, but that it looks at every second step, and anything is good enough."""
    text = EXAMPLES["until_good"].replace("% 100", "% 2").replace("< 2:", "< 1e9:").replace("500", "40")
    assert text.count("% 2") == 1 and text.count("< 1e9") == 1
    (here / "until_good.py").write_text(text)
    runpy.run_path("until_good.py")
    assert read_json(here / "runs/until-good/results.json")["steps"] == 2
    assert (here / "runs/until-good/student/model.safetensors").exists()
