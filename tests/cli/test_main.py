"""The command line as a whole: help without torch, and one line for every mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.cli.flags import QUICK


def test_version(cli):
    import pidistill

    assert cli("--version").out.strip() == pidistill.__version__


def test_help_does_not_import_torch():
    code = ("import sys\nfrom pidistill.cli import main\nsys.argv = ['pidistill', *sys.argv[1:]]\n"
            "try:\n    main()\nexcept SystemExit as done:\n    print('code', done.code)\n"
            "print([name for name in ('torch', 'numpy', 'accelerate', 'matplotlib') if name in sys.modules])")
    for args in (["--help"], ["distill", "--help"]):
        result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
        assert "Usage: pidistill" in result.stdout and result.stdout.splitlines()[-2:] == ["code 0", "[]"], result.stderr
        assert result.stderr == ""


def test_no_arguments_show_the_help(cli):
    result = cli()
    assert "Usage: " in result.out and "train-teacher" in result.out and result.err == ""


def test_the_verbs_are_frozen(cli):
    out = cli("--help").out
    for verb in ("distill", "resume", "sample", "trajectory", "pairs", "evaluate", "reference", "compare", "reproduce",
                 "train-teacher", "inspect", "convert"):
        assert re.search(rf"^  {verb} ", out, re.MULTILINE), verb


# mistakes ------------------------------------------------------------------------------------------------------------


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


def test_ctrl_c_says_what_the_job_has_to_say(cli, monkeypatch):
    from pidistill.jobs import pairs

    for text in ("2 of 4 shards stay\n", ""):
        def interrupt(*args, text=text, **options):
            raise KeyboardInterrupt(text)

        monkeypatch.setattr(pairs, "draw_pairs_of_spec", interrupt)
        result = cli("pairs")
        assert (result.code, result.out, result.err) == (130, "", text)


def test_real_process_refuses_in_one_line(command, tmp_path):
    assert "choices" in command("distill", "--preset", "nope", cwd=tmp_path).error()
    assert "sample" in command("smaple", cwd=tmp_path).error()
    assert list(tmp_path.iterdir()) == []
