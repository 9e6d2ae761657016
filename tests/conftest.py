"""Fixtures: tiny models, and the command line in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pidistill.nets.parts.native import build
from tests.helpers import NET, Result, gaussian64, tiny_teacher
from tests.server import Server

torch.set_num_threads(int(os.environ.get("PIDISTILL_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def teacher():
    """An EDM denoiser of 8x8 grey images in 3 classes, random weights."""
    return tiny_teacher()


@pytest.fixture
def plain_kernels(monkeypatch):
    """PyTorch's operators in place of our own kernels, whose rounding is another."""
    monkeypatch.setattr(build, "load_library", lambda: None)


@pytest.fixture(scope="session")
def inception_extractor():
    """torch-fidelity's own Inception v3 with random weights, made without its download."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        return library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])


@pytest.fixture(scope="session")
def inception_spec(inception_extractor, tmp_path_factory) -> str:
    """The feature network of a file with its weights."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_extractor.state_dict(), path)
    return f"inception:{path}"


@pytest.fixture
def gaussian():
    """A single Gaussian in float64."""
    return gaussian64()


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., Result]:
    """`pidistill ARGS` in this process: importing torch anew would cost seconds a case."""
    from pidistill.cli import main

    def run(*args) -> Result:
        monkeypatch.setattr(sys, "argv", ["pidistill", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return Result(exited.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def command() -> Callable[..., Result]:
    """`python -m pidistill.cli ARGS` as a process of its own."""

    def run(*args, cwd=None) -> Result:
        done = subprocess.run([sys.executable, "-m", "pidistill.cli", *map(str, args)], capture_output=True, text=True,
                              cwd=cwd, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"})
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def images_npz(tmp_path_factory):
    """24 random 8x8 grey images in 3 classes, as a data file."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (24, 8, 8), dtype=np.uint8), labels=np.arange(24) % 3)
    return path


@pytest.fixture(scope="session")
def net_flags() -> list[str]:
    """The tiny network as command line options."""
    return [f"--set=net={{name: {NET['name']}, model_channels: 8, channel_mult: [1, 1], num_blocks: 1, "
            "attn_resolutions: [4]}"]


@pytest.fixture
def server(monkeypatch):
    """A server of one file, which is fetched from as from a published one; without pauses between tries."""
    monkeypatch.setattr("pidistill.files.downloads.SCHEMES", ("http", "https"))
    monkeypatch.setattr("pidistill.files.downloads.PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.release.set()
        running.shutdown()
