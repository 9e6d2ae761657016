"""Every verb through the command line, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pidistill.core.seeds import labels_of
from pidistill.files.reading import read_json
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from pidistill.training.log import read_metrics
from tests.helpers import MLP

POINTS = ["--teacher", "gaussian:2,modes=4,std=0.1"]
RANDOM = ["--set", "student.init=random", "--set", "student.net={name: mlp, width: 16, depth: 2}"]
SHORT = ["--set", "train={steps: 5, batch: 8}", "--set", "evaluate.num=16", "--set", "grid.points=10",
         "--set", "log.every=2", "--set", "checkpoint.every=2", "--set", "preview={every: 4, seeds: 0-3}"]
QUICK = [*POINTS, *RANDOM, *SHORT]


def listing(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, command, images_npz, net_flags):
    """teacher/: trained on a small NPZ; student/: distilled from it; both by real processes."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--set", f"data={images_npz}", *net_flags, "--set", "train={steps: 3, batch: 4}", "--set", "preview.seeds=0-3"]
    made = command("train-teacher", *flags, "--out", folder / "teacher")
    assert made.code == 0, made.err
    assert f"teacher in {folder / 'teacher' / 'teacher'}" in made.out
    done = command("distill", "--teacher", folder / "teacher", *SHORT, "--out", folder / "student")
    assert done.code == 0, done.err
    (folder / "distill.out").write_text(done.out)
    return folder


# what the verbs do ---------------------------------------------------------------------------------------------------


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
    done = cli("distill", "--teacher", "gaussian:1x16x16", *RANDOM, *SHORT, "--set", "evaluate.features=digits",
               "--out", tmp_path / "run")
    assert done.code == 0, done.err
    results = read_json(tmp_path / "run" / "results.json")
    assert results["teacher"]["fd"] > 0 and results["student"]["fd"] > 0


def test_distill_of_vectors_and_the_same_seed_again(cli, tmp_path):
    for name in ("a", "b"):
        assert cli("distill", *QUICK, "--out", tmp_path / name).code == 0
    a, b = ((tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b and len(a) > 1000
    assert not (tmp_path / "a" / "samples").exists()  # two numbers are no picture


def test_resume_continues_an_interrupted_run(cli, tmp_path):
    import shutil

    run = tmp_path / "run"
    assert cli("distill", *QUICK, "--out", run).code == 0
    whole = (run / "student" / "model.safetensors").read_bytes()
    for name in ("checkpoints/000005", "student"):
        shutil.rmtree(run / name)
    (run / "results.json").unlink()
    assert "finished" in cli("sample", run, "--out", tmp_path / "x.npz").error()
    assert "unfinished" in cli("inspect", run).out
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert (run / "student" / "model.safetensors").read_bytes() == whole and (run / "results.json").exists()


def test_sample_npz_holds_the_students_images(cli, runs, tmp_path):
    done = cli("sample", runs / "student", "--seeds", "3-6,9", "--out", tmp_path / "a.npz", "--batch", 2)
    assert done.code == 0 and "5 images in" in done.out
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
        done = cli("sample", runs / "teacher", "--seeds", "0-1", "--sampler", sampler, "--steps", 4,
                   "--out", tmp_path / f"{sampler}.npz")
        assert done.code == 0, done.err
    a, b = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("heun", "euler"))
    assert a.shape == b.shape == (2, 8, 8, 1) and (a != b).any()
    assert cli("sample", "gaussian:2", "--seeds", "0-4", "--out", tmp_path / "v.npz").code == 0
    assert np.load(tmp_path / "v.npz")["images"].shape == (5, 2)


def test_evaluate_a_student_and_a_teacher(cli, runs, tmp_path):
    done = cli("evaluate", runs / "student", "--num", 6, "--batch", 4, "--steps", 3, "--out", tmp_path / "e.json")
    assert done.code == 0 and "student" in done.out and "5x fewer" in done.out
    results = json.loads((tmp_path / "e.json").read_text())
    assert results["teacher"]["nfe"] == 5 and (rmse := results["student"]["trajectory_rmse"]) > 0
    shifted = cli("evaluate", runs / "student", "--num", 6, "--steps", 3, "--first-seed", 50, "--out", tmp_path / "f.json")
    assert shifted.code == 0
    assert json.loads((tmp_path / "f.json").read_text())["student"]["trajectory_rmse"] != rmse
    assert cli("evaluate", "gaussian:2", "--num", 4).code == 0


def test_trajectory_picture(cli, runs, tmp_path):
    done = cli("trajectory", runs / "student", "--seeds", "0-1", "--columns", 3, "--out", tmp_path / "t.png")
    assert done.code == 0 and "2 trajectories" in done.out and "r.m.s. difference" in done.out
    assert Image.open(tmp_path / "t.png").size[0] > 500


def test_inspect_says_what_things_are(cli, runs):
    for what, words in ((runs / "student", ["student: 1 evaluation", "steps done", "song_unet", "1x8x8", "0.002 to 80"]),
                        (runs / "student" / "student", ["student: 1 evaluation", "versions"]),
                        (runs / "teacher", ["teacher (Preconditioned)", "final_loss"]), ("gaussian:2", ["unconditional"])):
        done = cli("inspect", what)
        assert done.code == 0, done.err
        assert [word for word in words if word not in done.out] == []


def test_inspect_a_student_without_provenance(cli, tmp_path):
    make_student(gaussian("2"), "random", MLP).save(tmp_path / "s")
    done = cli("inspect", tmp_path / "s")
    assert done.code == 0 and "student" in done.out


def test_resume_continues_a_teachers_training(cli, tmp_path, images_npz, net_flags):
    """`inspect` and `distill` both tell the owner of an unfinished run to use `resume`, whatever the run is of."""
    import shutil

    run, flags = tmp_path / "t", ["--set", f"data={images_npz}", *net_flags, "--set", "checkpoint.every=1"]
    assert cli("train-teacher", *flags, "--set", "train={steps: 2, batch: 2}", "--out", run).code == 0
    whole = (run / "teacher" / "model.safetensors").read_bytes()
    for path in (run / "checkpoints" / "000002", run / "teacher"):
        shutil.rmtree(path)
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert (run / "teacher" / "model.safetensors").read_bytes() == whole


def test_a_teacher_of_two_channels_needs_no_picture(cli, tmp_path):
    """Images that no PNG can show still train: only the preview is left out."""
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2), dtype=np.uint8))
    done = cli("train-teacher", "--set", f"data={tmp_path / 'a.npz'}", "--set", "net={name: mlp, width: 8, depth: 1}",
               "--set", "train={steps: 2, batch: 2}", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "teacher" / "model.safetensors").exists()


def test_version(cli):
    import pidistill

    assert cli("--version").out.strip() == pidistill.__version__


def test_help_does_not_import_torch():
    code = ("import sys\nfrom pidistill.cli import main\nsys.argv = ['pidistill', *sys.argv[1:]]\n"
            "try:\n    main()\nexcept SystemExit as done:\n    print('code', done.code)\n"
            "print([name for name in ('torch', 'numpy', 'accelerate', 'matplotlib') if name in sys.modules])")
    for args in (["--help"], ["distill", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
        assert "Usage: pidistill" in done.stdout and done.stdout.splitlines()[-2:] == ["code 0", "[]"], done.stderr
        assert done.stderr == ""


def test_no_arguments_show_the_help(cli):
    done = cli()
    assert "Usage: " in done.out and "train-teacher" in done.out and done.err == ""


def test_the_verbs_are_frozen(cli):
    out = cli("--help").out
    for verb in ("distill", "resume", "sample", "trajectory", "evaluate", "train-teacher", "inspect", "convert"):
        assert verb in out


# mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    (["--preset", "digit"], "did you mean 'digits'"), (["--preset", "nowhere.yaml"], "does not exist"),
    (["--teacher", "gausian:2"], "did you mean 'gaussian'"), (["--teacher", "nowhere"], "no folder and no KIND:REST"),
    (["--teacher", "gaussian:two"], "gaussian: takes SHAPE"), (["--teacher", "folder:/nowhere"], "holds no teacher"),
    ([*QUICK, "--set", "objective.distance=l22"], "did you mean 'l2'"),
    ([*QUICK, "--set", "objective.scheme=down"], "upwind"), ([*QUICK, "--set", "student.init=zero"], "random or a folder"),
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


def test_force_does_not_destroy_a_run_for_a_command_that_cannot_start(cli, runs, tmp_path):
    run = tmp_path / "run"
    assert cli("distill", *QUICK, "--out", run).code == 0
    before = listing(run)
    assert "l1" in cli("distill", *QUICK, "--set", "objective.distance=l22", "--out", run, "--force").error()
    assert listing(run) == before
    assert "cannot read" in cli("train-teacher", "--set", "data=nowhere.npz", "--out", run, "--force").error()
    assert listing(run) == before


def test_another_run_is_not_overwritten_without_force(cli, tmp_path):
    run = tmp_path / "run"
    assert cli("distill", *QUICK, "--out", run).code == 0
    before = listing(run)
    message = cli("distill", *QUICK, "--set", "train.seed=1", "--out", run).error()
    assert "holds another run" in message and "--force" in message and "resume" in message
    assert "holds another run" in cli("train-teacher", "--out", run).error()
    assert listing(run) == before
    assert cli("distill", *QUICK, "--set", "train.seed=1", "--out", run, "--force").code == 0
    after = listing(run)
    assert after["student/model.safetensors"] != before["student/model.safetensors"]
    assert not [name for name in after if "tensorboard" in name and name in before]


def test_force_replaces_runs_only(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    for more in ([], ["--force"]):
        assert "holds no run" in cli("distill", *QUICK, "--out", tmp_path / "mine", *more).error()
        assert "is a file" in cli("distill", *QUICK, "--out", tmp_path / "mine" / "thesis.tex", *more).error()
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "dear"


@pytest.mark.parametrize("verb, args, words", [
    ("sample", ["--seeds", "a-b"], "seeds must be numbers"), ("sample", ["--seeds", "5-1"], "runs backwards"),
    ("sample", ["--seeds", "-3"], "seeds"), ("sample", ["--labels", "3"], "label 3 is outside the classes 0-2"),
    ("sample", ["--labels", "x"], "labels must be numbers"),
    ("sample", ["--seeds", "0-3", "--labels", "0-2"], "3 labels for 4"),
    ("sample", ["--sampler", "huen"], "did you mean 'heun'"), ("sample", ["--steps", "0"], "--steps"),
    ("sample", ["--batch", "0"], "--batch"), ("sample", ["--batch", "x"], "--batch"),
    ("sample", ["--columns", "0"], "--columns"),
    ("trajectory", ["--seeds", "0-999"], "more than 100"), ("trajectory", ["--labels", "7"], "label 7"),
    ("trajectory", ["--columns", "1"], "--columns"), ("trajectory", ["--teacher", "gaussian:2"], "gives (2,)"),
    ("evaluate", ["--num", "1"], "--num"), ("evaluate", ["--features", "digit"], "did you mean 'digits'"),
    ("evaluate", ["--features", "digits"], "16, 16"), ("evaluate", ["--teacher", "nope:1"], "unknown teacher kind"),
    ("evaluate", ["--first-seed", "99999999999999999999999"], "seed")])
def test_verbs_refuse_in_one_line(cli, runs, tmp_path, monkeypatch, verb, args, words):
    monkeypatch.chdir(tmp_path)
    assert words in cli(verb, runs / "student", *args).error()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["sample", "trajectory", "evaluate", "inspect"])
def test_models_that_are_none(cli, runs, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for spec, words in (("nowhere", "does not exist"), ("empty", "holds no teacher"), ("nope:3", "bundled"),
                        (runs / "student" / "results.json", "is a file")):
        assert words in cli(verb, spec).error()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_results_are_not_overwritten_without_force(cli, runs, tmp_path):
    for verb, name in (("sample", "a.png"), ("sample", "a.npz"), ("trajectory", "b.png"), ("evaluate", "c.json")):
        more = ["--num", 4, "--steps", 2] if verb == "evaluate" else ["--seeds", "0"]
        (tmp_path / name).write_text("mine")
        assert "--force" in cli(verb, runs / "student", *more, "--out", tmp_path / name).error()
        assert (tmp_path / name).read_text() == "mine"
        assert cli(verb, runs / "student", *more, "--out", tmp_path / name, "--force").code == 0
        assert (tmp_path / name).read_bytes() != b"mine"


@pytest.mark.parametrize("verb, name", [("sample", "a.png"), ("sample", "a.npz"), ("trajectory", "a.png"),
                                        ("evaluate", "a.json"), ("distill", "a"), ("train-teacher", "a")])
def test_unwritable_places_are_one_line(cli, runs, tmp_path, images_npz, net_flags, verb, name):
    (tmp_path / "file").write_text("")
    model = {"distill": QUICK, "train-teacher": ["--set", f"data={images_npz}", *net_flags]}.get(verb, [runs / "student"])
    more = ["--num", 4, "--steps", 2] if verb == "evaluate" else []
    assert "cannot write" in cli(verb, *model, *more, "--out", tmp_path / "file" / name).error()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_line(cli, runs, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in cli("sample", runs / "student", "--out", tmp_path / "locked" / "a.png").error()
    assert "Permission denied" in cli("distill", *QUICK, "--out", tmp_path / "locked" / "run").error()


def test_pictures_of_vectors_are_refused(cli, tmp_path):
    assert "npz" in cli("sample", "gaussian:2", "--out", tmp_path / "a.png").error()
    assert ".png" in cli("sample", "gaussian:1x8x8", "--seeds", "0", "--steps", 2, "--out", tmp_path / "a.jpg").error()
    assert list(tmp_path.iterdir()) == []


def test_damaged_students_are_one_line(cli, runs, tmp_path):
    import shutil

    for name, content, words in (("model.safetensors", b"xx", "truncated"), ("config.json", b"{", "cannot read"),
                                 ("config.json", None, "holds no teacher"), ("model.safetensors", None, "does not exist")):
        folder = shutil.copytree(runs / "student" / "student", tmp_path / f"{name}{content}")
        (folder / name).write_bytes(content) if content else (folder / name).unlink()
        assert words in cli("sample", folder, "--out", tmp_path / "a.npz").error()


def test_resume_needs_a_run(cli, tmp_path):
    assert "holds no run" in cli("resume", tmp_path).error()


@pytest.mark.parametrize("flags, words", [
    (["--set", "data=nowhere.npz"], "cannot read images"), (["--set", "data=mnist"], "data must be"),
    (["--set", "net.name=songunet"], "song_unet"), (["--set", "net.model_channels=9"], "groups"),
    (["--set", "t_min=90"], "t_min"), (["--set", "t_mim=1"], "did you mean 't_min'"),
    (["--set", "objective=pid"], "objectives/pid"),
    (["--set", "preview.seeds=x"], "preview.seeds"), (["--set", "objective.p_mean=low"], "p_mean")])
def test_train_teacher_refuses_in_one_line_and_leaves_nothing(cli, tmp_path, images_npz, net_flags, flags, words):
    base = [] if any("data=" in flag for flag in flags) else ["--set", f"data={images_npz}"]
    short = ["--set", "train={steps: 1, batch: 1}"]
    assert words in cli("train-teacher", *base, *net_flags, *short, *flags, "--out", tmp_path / "run").error()
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_with_one_line_of_error(cli, tmp_path):
    done = cli("distill", *QUICK, "--set", "optimizer.lr=1e30", "--set", "train.steps=60", "--out", tmp_path / "run")
    assert done.code == 2 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: 20 steps in a row")


def test_real_process_refuses_in_one_line(command, tmp_path):
    assert "choices" in command("distill", "--preset", "nope", cwd=tmp_path).error()
    assert "sample" in command("smaple", cwd=tmp_path).error()
    assert list(tmp_path.iterdir()) == []


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


def test_the_same_line_starts_a_run_and_goes_on(cli, tmp_path):
    """`--resume` where no run is, where one has ended, and where it was shorter; `resume --set` and `--step`."""
    line = ["distill", *POINTS, *RANDOM, "--set", "evaluate.num=2", "--set", "preview.seeds=0-3", "--resume",
            "--out", tmp_path / "run"]
    steps = lambda n: ["--set", f"train={{steps: {n}, batch: 2}}", "--set", "checkpoint.every=1"]
    for n in (2, 2, 3):
        done = cli(*line, *steps(n))
        assert done.code == 0, done.err
        assert read_json(tmp_path / "run" / "results.json")["steps"] == n
    assert "goes on with other settings: train.steps" in done.err
    (tmp_path / "mine.yaml").write_text("optimizer: {lr: 1e-3}\nema: 0.99995\ntrain: {steps: 3, batch: 2}\nout: x\n")
    refused = cli(*line, "--preset", tmp_path / "mine.yaml", *steps(3)).error()
    assert "was made with other settings" in refused and "(optimizer.lr)" in refused and "--set" in refused
    done = cli("resume", tmp_path / "run", "--set", "train.steps=4", "--set", "optimizer.lr=1e-3", "--step", 2)
    assert done.code == 0, done.err
    state = read_json(tmp_path / "run" / "checkpoints" / "000004" / "state.json")
    assert state["config"]["optimizer"]["lr"] == 1e-3 and (tmp_path / "run" / "checkpoints" / "000003.later").is_dir()
    assert "beyond train.steps=3" in cli("resume", tmp_path / "run", "--set", "train.steps=3").error()
    assert cli("resume", tmp_path / "run", "--set", "train.steps=4").code == 0
