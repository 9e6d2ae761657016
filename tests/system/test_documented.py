"""Every code block and command of README, CONTRIBUTING and docs runs, page by page, in a folder with what they speak of."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import pidistill
from pidistill.cli.main import app
from pidistill.models.student_init import make_student
from tests.documents import (
    PAGES,
    SHOWN,
    check_foreign,
    find_out,
    make_smaller,
    names_large,
    read_blocks,
    split_commands,
    start_smaller,
    stop_at_work,
)
from tests.edm_pickles import write
from tests.helpers import shake, tiny_teacher
from tests.models.teachers.test_onnx import graph

LOOPS = {"until_good.py"}  # run by tests/system/test_extending.py, where it is made to end


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the pages speak of and a reader has: runs, images, checkpoints, pipelines; each tiny."""
    here = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    (here / "my-images").mkdir()
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(here / "my-images" / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        small = {"train": {"steps": 2, "batch": 4}, "evaluate.num": 8, "preview.seeds": "0-1"}
        pidistill.distill("bundled:digits", preset="digits", out="runs/mine", overrides=small)
        stages = {"objective.first.train": {"steps": 2, "batch": 4}}
        pidistill.distill("bundled:digits", preset="digits_corrected", out="runs/digits-corrected", overrides=small | stages)
    make_student(tiny_teacher()).save(here / "runs" / "earlier" / "student")
    graph(here / "teacher.onnx", shape=(1, 8, 8), metadata='{"t_min": 0.01, "t_max": 80, "sigma_data": 0.5}')
    net = tiny_teacher().model
    kwargs = dict(model_channels=8, channel_mult=[1, 1], num_blocks=1, attn_resolutions=[4])
    facts = {"img_resolution": 8, "img_channels": 1, "label_dim": 3, "use_fp16": False, "sigma_min": 0,
             "sigma_max": float("inf"), "sigma_data": 0.5}
    for name, more in (("network-snapshot-002500", {}), ("cifar", {}), ("snapshot", {"label_dropout": 0.1})):
        write(here / f"{name}.pkl", net, kwargs=kwargs | more, **facts)
    torch.save({"net": net.state_dict(), "ema_0.9999": net.state_dict()}, here / "checkpoint.pt")
    make_pipelines(here)
    shutil.copytree(here / "runs" / "mine", here / "runs" / "digits")
    return here


def make_pipelines(here: Path) -> None:
    """Pipelines of a small UNet2DModel, with and without classes."""
    import diffusers

    torch.manual_seed(0)
    for name, classes in (("my-pipeline", None), ("path/to/pipeline", None), ("my-unet", 11), ("my-classes", 11)):
        net = shake(diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=classes))
        diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(clip_sample=False)).save_pretrained(here / name)


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world, as working directory and place of modules."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # or it keeps its runs in the user's home
    monkeypatch.syspath_prepend(str(folder))
    before = {*sys.modules}
    yield folder
    for name in {*sys.modules} - before:
        if (folder / f"{name}.py").exists():
            del sys.modules[name]


def begin_afresh(out: Path | None, begun: set[Path]) -> None:
    """Delete a run that the world has and a page makes: a reader of that page has none yet."""
    if out and out not in begun:
        shutil.rmtree(out, ignore_errors=True)
        begun.add(out)


def start_page(start, begun, *args, out, **options):
    """Start a run of a page from Python."""
    begin_afresh(Path(out), begun)
    return start_smaller(start, *args, out=out, **options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page, here, cli, monkeypatch):
    begun: set[Path] = set()

    def run(words):
        large = names_large(words)
        words = words if large else make_smaller(words)
        if words[0] == "distill" and "--dry-run" not in words:
            begin_afresh(find_out(words), begun)
        with monkeypatch.context() as patch:
            if large:
                stop_at_work(patch)
            done = cli(*words)
        # That page's networks have random weights, which --check does not take for a denoiser.
        untrained = "--check" in words and page.stem == "diffusers"
        assert done.code == (1 if untrained else 0), f"pidistill {' '.join(words)}: {done.err}{done.out}"

    for name in ("distill", "steps"):
        monkeypatch.setattr(pidistill, name, partial(start_page, getattr(pidistill, name), begun), raising=False)
    names: dict[str, object] = {}
    blocks = read_blocks(page)
    for block in blocks:
        if block.file:
            Path(block.file).write_text(block.text)
    for block in blocks:
        if block.file:
            continue  # a command of the page uses it
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        elif block.language == "sh":
            for words in split_commands(block.text):
                if words[0] == "pidistill":
                    run(words[1:])
                elif words[0] == "python" and Path(words[1]).is_file():
                    if words[1] not in LOOPS:
                        runpy.run_path(words[1])
                else:
                    check_foreign(words, monkeypatch, run)
        elif block.language == "bash":
            assert subprocess.run(["bash", "-n"], input=block.text, text=True).returncode == 0
        else:
            assert block.language in SHOWN, f"a block without a language, or of another one: {block.text[:60]!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_within_the_text_have_options_that_exist(page):
    verbs = typer.main.get_command(app).commands
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`(?:[^`]* )?pidistill(?:\.cli)? ([^`]+)`", text):
        verb, *rest = command.split()
        if verb in verbs:
            known = {option for parameter in verbs[verb].params for option in parameter.opts}
            assert {word.partition("=")[0] for word in rest if re.match(r"--\w", word)} <= known, command
