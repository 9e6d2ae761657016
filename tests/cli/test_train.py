"""The verbs that train leave whole runs, go on with them, and destroy none."""

from __future__ import annotations

import json
import os
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from pidistill.files.reading import read_json
from pidistill.models.student import load_student
from pidistill.training.config_file import parse_yaml
from pidistill.training.log import read_metrics
from tests.cli.flags import POINTS, QUICK, RANDOM, SHORT
from tests.names import NAMES


def read_files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_train_teacher_leaves_a_teacher_with_its_provenance(runs, images_npz):
    provenance = read_json(runs / "teacher" / "teacher" / "provenance.json")
    assert provenance["command"].startswith("pidistill train-teacher") and provenance["data"] == str(images_npz)
    assert (provenance["steps"], provenance["batch"], provenance["seed"], provenance["data_images"]) == (3, 4, 0, 24)
    assert provenance["final_loss"] > 0 and {"torch", "pidistill"} <= set(provenance["versions"])
    assert {"config.json", "model.safetensors"} <= {path.name for path in (runs / "teacher" / "teacher").iterdir()}
    assert Image.open(runs / "teacher" / "samples" / "000003.png").size[0] > 300


def test_distill_leaves_a_whole_run(runs):
    run = runs / "student"
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "student/model.safetensors", "student/config.json",
                 "samples/000004.png", "samples/000005.png", "teacher-student.png", "checkpoints/000005", "results.json"):
        assert (run / name).exists(), name
    results = read_json(run / "results.json")
    assert results["teacher"]["nfe"] == 35 and results["student"]["nfe"] == 1
    assert results["teacher"]["images_per_s"] > 0 and results["student"]["images_per_s"] > 0
    assert results["student"]["trajectory_rmse"] > 0 and results["seconds"] > 0
    assert [record["step"] for record in read_metrics(run)] == [2, 4, 5]
    table = (runs / "distill.out").read_text()
    assert "teacher" in table and "35" in table and "35x fewer" in table and "results.json" in table


def test_distill_reports_fd_where_features_are_named(cli, tmp_path):
    result = cli("distill", "--teacher", "gaussian:1x16x16", *RANDOM, *SHORT, "--set", "evaluate.features=digits",
               "--out", tmp_path / "run")
    assert result.code == 0, result.err
    results = read_json(tmp_path / "run" / "results.json")
    assert results["teacher"]["fd"] > 0 and results["student"]["fd"] > 0


def test_distill_of_vectors_and_the_same_seed_again(cli, tmp_path):
    for name in ("a", "b"):
        assert cli("distill", *QUICK, "--out", tmp_path / name).code == 0
    a, b = ((tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b and len(a) > 1000
    assert not (tmp_path / "a" / "samples").exists()  # two numbers are no picture


def test_a_teacher_of_two_channels_needs_no_picture(cli, tmp_path):
    """Images that no PNG can show still train: only the preview is left out."""
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2), dtype=np.uint8))
    result = cli("train-teacher", "--set", f"data={tmp_path / 'a.npz'}", "--set", "net={name: mlp, width: 8, depth: 1}",
               "--set", "train={steps: 2, batch: 2}", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "teacher" / "model.safetensors").exists()


def test_resume_continues_an_interrupted_run(cli, tmp_path):
    run = tmp_path / "run"
    assert cli("distill", *QUICK, "--out", run).code == 0
    whole = (run / "student" / "model.safetensors").read_bytes()
    for name in ("checkpoints/000005", "student"):
        shutil.rmtree(run / name)
    (run / "results.json").unlink()
    assert "finished" in cli("sample", run, "--out", tmp_path / "x.npz").error()
    assert "unfinished" in cli("inspect", run).out
    result = cli("resume", run)
    assert result.code == 0, result.err
    assert (run / "student" / "model.safetensors").read_bytes() == whole and (run / "results.json").exists()


def test_resume_continues_a_teachers_training(cli, tmp_path, images_npz, net_flags):
    """`inspect` and `distill` both tell the owner of an unfinished run to use `resume`, whatever the run is of."""
    run, flags = tmp_path / "t", ["--set", f"data={images_npz}", *net_flags, "--set", "checkpoint.every=1"]
    assert cli("train-teacher", *flags, "--set", "train={steps: 2, batch: 2}", "--out", run).code == 0
    whole = (run / "teacher" / "model.safetensors").read_bytes()
    for path in (run / "checkpoints" / "000002", run / "teacher"):
        shutil.rmtree(path)
    result = cli("resume", run)
    assert result.code == 0, result.err
    assert (run / "teacher" / "model.safetensors").read_bytes() == whole


def test_the_same_line_starts_a_run_and_goes_on(cli, tmp_path):
    """`--resume` where no run is, where one has ended, and where it was shorter; `resume --set` and `--step`."""
    line = ["distill", *POINTS, *RANDOM, "--set", "evaluate.num=2", "--set", "preview.seeds=0-3", "--resume",
            "--out", tmp_path / "run"]
    steps = lambda n: ["--set", f"train={{steps: {n}, batch: 2}}", "--set", "checkpoint.every=1"]
    for n in (2, 2, 3):
        result = cli(*line, *steps(n))
        assert result.code == 0, result.err
        assert read_json(tmp_path / "run" / "results.json")["steps"] == n
    assert "goes on with other settings: train.steps" in result.err
    (tmp_path / "mine.yaml").write_text("optimizer: {lr: 1e-3}\nema: 0.99995\ntrain: {steps: 3, batch: 2}\nout: x\n")
    refused = cli(*line, "--preset", tmp_path / "mine.yaml", *steps(3)).error()
    assert "was made with other settings" in refused and "(optimizer.lr)" in refused and "--set" in refused
    result = cli("resume", tmp_path / "run", "--set", "train.steps=4", "--set", "optimizer.lr=1e-3", "--step", 2)
    assert result.code == 0, result.err
    state = read_json(tmp_path / "run" / "checkpoints" / "000004" / "state.json")
    assert state["config"]["optimizer"]["lr"] == 1e-3 and (tmp_path / "run" / "checkpoints" / "000003.later").is_dir()
    assert "beyond train.steps=3" in cli("resume", tmp_path / "run", "--set", "train.steps=3").error()
    assert cli("resume", tmp_path / "run", "--set", "train.steps=4").code == 0


# names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["distill", "train-teacher"])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_options_reach_the_run_unchanged(cli, tmp_path, monkeypatch, verb, name):
    from pidistill.jobs import distill, train_teacher

    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(distill, "run_distillation", lambda config, **_: seen.append(config))
    monkeypatch.setattr(train_teacher, "run_teacher_training", lambda config, *_, **__: seen.append(config))
    teacher = [f"--teacher={name}"] if verb == "distill" else []
    result = cli(verb, *teacher, f"--out={name}")
    assert result.code == 0, result.err
    assert seen[0].out == name and (verb == "train-teacher" or seen[0].teacher == name)


HARD = "a\\b \xa0#1: 'x' \"y\" [red] é日😀 $z\n~"  # one for all, as a run takes a second


def test_runs_live_in_folders_of_any_name(cli, tmp_path, monkeypatch, images_npz, net_flags):
    """A teacher's training from data of such a name, its distillation, and every verb that takes a run."""
    monkeypatch.chdir(tmp_path)
    data, base = f"data{HARD}.npz", f" {HARD} 1e3"
    shutil.copy(images_npz, data)
    short = ["--set", "train={steps: 2, batch: 2}", "--set", "preview.seeds=0-1"]
    quoted = json.dumps(data, ensure_ascii=False)
    assert cli("train-teacher", "--set", f"data={quoted}", *net_flags, *short, f"--out=t{base}").code == 0
    short += ["--set", "evaluate.num=4", "--set", "grid.points=5"]
    result = cli("distill", f"--teacher=t{base}", *short, f"--out={base}")
    assert result.code == 0, result.err
    assert cli("resume", base, "--set", "train.steps=3").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([data, f"t{base}", base])
    assert cli("sample", base, "--seeds", "0-1", "--out", f"s{base}.npz").code == 0
    assert cli("evaluate", base, "--num", 2, "--steps", 2, "--out", f"e{base}.json").code == 0
    result = cli("compare", f"--teacher=t{base}", "--students", base, "--samplers", "heun:2", "--num", 2, f"--out=c{base}")
    assert result.code == 0, result.err
    assert (tmp_path / f"s{base}.npz").is_file() and read_json(tmp_path / f"e{base}.json")["student"]["nfe"] == 1
    assert (tmp_path / f"c{base}" / "compare-samples.png").is_file()
    for folder in (f"t{base}", base):
        config = parse_yaml((tmp_path / folder / "config.yaml").read_text(encoding="utf-8"))
        assert config["out"] == folder and config.get("data", data) in (data, None)
        assert config.get("teacher", f"t{base}") == f"t{base}"
    assert read_json(tmp_path / base / "student" / "provenance.json")["teacher"] == f"t{base}"


def test_a_name_that_is_no_utf8_is_a_name(cli, tmp_path, monkeypatch):
    """Linux's file systems take any bytes."""
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"run \xff")
    result = cli("distill", *QUICK, "--out", name)
    assert result.code == 0 and "run \\udcff" in result.out, result.err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert parse_yaml((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))["out"] == name
    assert load_student(tmp_path / name).sample(range(2)).shape == (2, 2)


@pytest.mark.parametrize("args, words", [(["--teacher", ""], "teacher"), (["--preset", ""], "unknown preset ''")])
def test_an_empty_word_is_no_default(cli, tmp_path, args, words):
    """Such as that of a shell's variable that is not set."""
    assert words in cli("distill", *args, "--out", tmp_path / "run").error()
    assert not (tmp_path / "run").exists()


def test_empty_names_are_not_the_current_folder(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "has no name" in cli("train-teacher", "--set", "data=''").error()
    assert "has no name" in cli("reference", "", "--features", "digits", "--out", "r.npz").error()
    line = ["evaluate", "gaussian:1x16x16", "--features", "digits", "--num", 4]
    assert "has no name" in cli(*line, "--reference", "").error()


# mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    (["--preset", "digit"], "did you mean 'digits'"), (["--preset", "nowhere.yaml"], "does not exist"),
    (["--teacher", "gausian:2"], "did you mean 'gaussian'"), (["--teacher", "nowhere"], "no folder and no KIND:REST"),
    (["--teacher", "gaussian:two"], "gaussian: takes SHAPE"), (["--teacher", "folder:/nowhere"], "holds no teacher"),
    ([*QUICK, "--set", "objective.distance=l22"], "did you mean 'l2'"),
    ([*QUICK, "--set", "objective.scheme=down"], "upwind"), ([*QUICK, "--set", "student.init=zero"], "random or a folder"),
    ([*QUICK, "--set", "objective=edm"], "the objective edm trains a teacher: pidistill train-teacher"),
    ([*QUICK, "--set", "objective=python:math:sqrt"], "must be a subclass of pidistill.Objective"),
    ([*QUICK, "--set", "data=digits"], "the objective pid needs no images; leave `data` out"),
    ([*QUICK, "--set", "objective=pdi"], "did you mean 'pid'"), ([*QUICK, "--set", "objective.balnce=1"], "'balance'"),
    ([*QUICK, "--set", "objective.balance=3"], "objective.balance"),
    ([*QUICK, "--set", "objective.balance=much"], "balance"),
    ([*QUICK, "--set", "student.net.name=mpl"], "did you mean 'mlp'"), ([*QUICK, "--set", "student.net.widht=3"], "'width'"),
    ([*QUICK, "--set", "student.net.num_classes=3"], "num_classes"), ([*QUICK, "--set", "student.net.width=-3"], "width"),
    ([*QUICK, "--set", "student.net.width=wide"], "width"),
    ([*QUICK, "--set", "train.stpes=3"], "did you mean 'train.steps'"), ([*QUICK, "--set", "train.steps=0"], "train.steps"),
    ([*QUICK, "--set", "grid.points=1"], "grid.points"), ([*QUICK, "--set", "ema=1.5"], "ema"),
    ([*QUICK, "--set", "train.seed=99999999999999999999999"], "train.seed"),
    ([*QUICK, "--set", "optimizer.betas=[2, 0.9]"], "optimizer.betas"), ([*QUICK, "--set", "train.steps"], "key=value"),
    ([*QUICK, "--set", "preview.seeds=3-1"], "preview.seeds"),
    ([*QUICK, "--set", "evaluate.features=digit"], "did you mean 'digits'"),
    ([*QUICK, "--set", "evaluate.features=digits"], "16, 16"), ([*POINTS, *SHORT], "student.init=random"),
    (["--teacher"], "requires an argument"), (["--colour", "red"], "No such option"), (["extra"], "extra")])
def test_distill_refuses_in_one_line_and_leaves_nothing(cli, tmp_path, args, words):
    """A mistake costs no training, and the corrected command must not find a folder in its way."""
    out = tmp_path / "run"
    assert words in cli("distill", "--out", out, *args).error()
    assert not out.exists()


@pytest.mark.parametrize("flags, words", [
    (["--set", "data=nowhere.npz"], "nowhere.npz: does not exist"), (["--set", "data=mnist"], "images come as `digits`"),
    (["--set", "net.name=songunet"], "song_unet"), (["--set", "net.model_channels=9"], "groups"),
    (["--set", "t_min=90"], "t_min"), (["--set", "t_mim=1"], "did you mean 't_min'"),
    (["--set", "objective=pid"], "the objective pid trains a student: pidistill distill"),
    (["--set", "preview.seeds=x"], "preview.seeds"), (["--set", "objective.p_mean=low"], "p_mean")])
def test_train_teacher_refuses_in_one_line_and_leaves_nothing(cli, tmp_path, images_npz, net_flags, flags, words):
    base = [] if any("data=" in flag for flag in flags) else ["--set", f"data={images_npz}"]
    short = ["--set", "train={steps: 1, batch: 1}"]
    assert words in cli("train-teacher", *base, *net_flags, *short, *flags, "--out", tmp_path / "run").error()
    assert not (tmp_path / "run").exists()


def test_force_does_not_destroy_a_run_for_a_command_that_cannot_start(cli, runs, tmp_path):
    run = tmp_path / "run"
    assert cli("distill", *QUICK, "--out", run).code == 0
    before = read_files(run)
    assert "l1" in cli("distill", *QUICK, "--set", "objective.distance=l22", "--out", run, "--force").error()
    assert read_files(run) == before
    assert "does not exist" in cli("train-teacher", "--set", "data=nowhere.npz", "--out", run, "--force").error()
    assert read_files(run) == before


def test_another_run_is_not_overwritten_without_force(cli, tmp_path):
    run = tmp_path / "run"
    assert cli("distill", *QUICK, "--out", run).code == 0
    before = read_files(run)
    message = cli("distill", *QUICK, "--set", "train.seed=1", "--out", run).error()
    assert "holds another run" in message and "--force" in message and "resume" in message
    assert "holds another run" in cli("train-teacher", "--out", run).error()
    odd = run.rename(tmp_path / "it's a #run")
    assert f"`pidistill resume {shlex.quote(str(odd))}`" in cli("distill", *QUICK, "--out", odd).error()
    odd.rename(run)
    assert read_files(run) == before
    assert cli("distill", *QUICK, "--set", "train.seed=1", "--out", run, "--force").code == 0
    after = read_files(run)
    assert after["student/model.safetensors"] != before["student/model.safetensors"]
    assert not [name for name in after if "tensorboard" in name and name in before]


def test_force_replaces_runs_only(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    for more in ([], ["--force"]):
        assert "holds no run" in cli("distill", *QUICK, "--out", tmp_path / "mine", *more).error()
        assert "is a file" in cli("distill", *QUICK, "--out", tmp_path / "mine" / "thesis.tex", *more).error()
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "dear"


def test_resume_needs_a_run(cli, tmp_path):
    assert "holds no run" in cli("resume", tmp_path).error()


def test_a_loss_that_is_not_finite_ends_with_one_line_of_error(cli, tmp_path):
    result = cli("distill", *QUICK, "--set", "optimizer.lr=1e30", "--set", "train.steps=60", "--out", tmp_path / "run")
    assert result.code == 2 and "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("error: 20 steps in a row")
