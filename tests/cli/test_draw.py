"""The verbs that draw write what they were asked for, or one line."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from pidistill.core.seeds import labels_of
from pidistill.files.pairs import open_pairs
from pidistill.models.student import load_student


def test_sample_npz_holds_the_students_images(cli, runs, tmp_path):
    result = cli("sample", runs / "student", "--seeds", "3-6,9", "--out", tmp_path / "a.npz", "--batch", 2)
    assert result.code == 0 and "5 images in" in result.out
    with np.load(tmp_path / "a.npz") as file:
        assert file["images"].shape == (5, 8, 8, 1) and file["images"].dtype == np.uint8
        assert file["seeds"].tolist() == [3, 4, 5, 6, 9]
        assert file["labels"].tolist() == labels_of([3, 4, 5, 6, 9], 3).tolist()
        expected = load_student(runs / "student").sample([9])[0, 0].numpy()
        assert np.abs(file["images"][4, :, :, 0] / 127.5 - 1 - expected).max() < 2 / 127.5


def test_sample_grid_and_folder(cli, runs, tmp_path):
    assert cli("sample", runs / "student", "--seeds", "0-7", "--columns", 4, "--out", tmp_path / "a.png").code == 0
    width, height = Image.open(tmp_path / "a.png").size
    assert width / height == pytest.approx(37 / 19, rel=0.01)
    assert cli("sample", runs / "student", "--seeds", "0,12", "--labels", "1", "--out", tmp_path / "pngs").code == 0
    assert sorted(path.name for path in (tmp_path / "pngs").iterdir()) == ["000000.png", "000012.png"]
    assert Image.open(tmp_path / "pngs" / "000012.png").size == (8, 8)


def test_sample_of_a_teacher_by_either_sampler(cli, runs, tmp_path):
    for sampler in ("heun", "euler"):
        result = cli("sample", runs / "teacher", "--seeds", "0-1", "--sampler", sampler, "--steps", 4,
                   "--out", tmp_path / f"{sampler}.npz")
        assert result.code == 0, result.err
    a, b = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("heun", "euler"))
    assert a.shape == b.shape == (2, 8, 8, 1) and (a != b).any()
    assert cli("sample", "gaussian:2", "--seeds", "0-4", "--out", tmp_path / "v.npz").code == 0
    assert np.load(tmp_path / "v.npz")["images"].shape == (5, 2)


def test_forced_samples_leave_no_old_pictures(tmp_path, monkeypatch, capsys):
    """A folder of PNGs holds what the last call drew, not a mixture of two."""
    from pidistill.cli import main

    for seeds in ("0-3", "7"):
        monkeypatch.setattr("sys.argv", ["pidistill", "sample", "gaussian:1x4x4", "--seeds", seeds, "--steps", "2",
                                         "--out", str(tmp_path / "pictures"), "--force"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["000007.png"]


def test_pairs_of_a_teacher(cli, runs, tmp_path):
    flags = ["--teacher", runs / "teacher", "--num", 5, "--sampler", "heun:3", "--seed", 4, "--out", tmp_path / "p"]
    result = cli("pairs", *flags, "--trajectory", 2, "--shard", 2, "--half", "--batch", 2)
    assert result.code == 0 and "5 pairs in" in result.out and "5 evaluations each" in result.out, result.err
    assert "float16 of the solutions: error at most" in result.out
    pairs = open_pairs(tmp_path / "p")
    assert (len(pairs), pairs.seed, len(pairs.times), pairs.settings.shard, pairs.settings.dtype) == (5, 4, 2, 2, "float16")
    assert pairs.record["batch"] == 2
    assert "holds other pairs" in cli("pairs", *flags).error()
    assert "float16" not in cli("pairs", *flags, "--force").out and open_pairs(tmp_path / "p").times == ()
    for flag, value, words in (("--sampler", "ddpm:3", "adds noise"), ("--trajectory", "9", "2 to 3 states"),
                               ("--sampler", "heun:3,4", "one number of steps"), ("--num", "1", "--num")):
        assert words in cli("pairs", *flags, flag, value).error()


def test_pictures_of_vectors_are_refused(cli, tmp_path):
    assert "npz" in cli("sample", "gaussian:2", "--out", tmp_path / "a.png").error()
    assert ".png" in cli("sample", "gaussian:1x8x8", "--seeds", "0", "--steps", 2, "--out", tmp_path / "a.jpg").error()
    assert list(tmp_path.iterdir()) == []


def test_damaged_students_are_one_line(cli, runs, tmp_path):
    for name, content, words in (("model.safetensors", b"xx", "truncated"), ("config.json", b"{", "cannot read"),
                                 ("config.json", None, "holds no teacher"), ("model.safetensors", None, "does not exist")):
        folder = shutil.copytree(runs / "student" / "student", tmp_path / f"{name}{content}")
        (folder / name).write_bytes(content) if content else (folder / name).unlink()
        assert words in cli("sample", folder, "--out", tmp_path / "a.npz").error()


def test_trajectory_picture(cli, runs, tmp_path):
    result = cli("trajectory", runs / "student", "--seeds", "0-1", "--columns", 3, "--out", tmp_path / "t.png")
    assert result.code == 0 and "2 trajectories" in result.out and "r.m.s. difference" in result.out
    assert Image.open(tmp_path / "t.png").size[0] > 500
