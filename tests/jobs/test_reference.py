"""`pidistill reference`: what it writes, and what it refuses."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("args, words", [
    (["reference", "nowhere", "--out", "r.npz"], "nowhere: does not exist; images come as `digits`"),
    (["reference", "digits", "--out", "r.txt"], ".npz"),
    (["reference", "nowhere", "--features", "digits", "--out", "r.npz"], "nowhere")])
def test_bad_input_is_one_line(cli, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("pidistill.files.downloads.download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    assert words in cli(*args).error()


def test_reference_verb(cli, tmp_path):
    done = cli("reference", "digits", "--features", "digits", "--keep", 30, "--out", tmp_path / "ref.npz")
    assert done.code == 0 and "5000 images in 32 features" in done.out and "features of 30 kept" in done.out
    assert "exists" in cli("reference", "digits", "--features", "digits", "--out", tmp_path / "ref.npz").error()
    assert cli("evaluate", "gaussian:1x16x16", "--features", "digits", "--reference", tmp_path / "ref.npz", "--num", 40,
               "--metrics", "fd,kid", "--steps", 2).code == 0
