"""A run's profiles are stored at intervals, and whatever ends the run, they are those of the undisturbed one."""

from __future__ import annotations

import errno
import os
import shutil
import signal

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files import folders
from pidistill.files.manifest import verify
from pidistill.files.weights import read_tensors
from pidistill.models.student import load_student
from pidistill.training import checkpoint_writer, snapshots
from pidistill.training.checkpoint import clean, describe_contents
from pidistill.training.run_folder import go_back
from pidistill.training.trainer import Watcher
from tests.helpers import exit_code, in_clean_child
from tests.runs import cut, make_run, run_verb, start_run
from tests.training.checkpoints import list_names

OPTIONS = {"train.steps": 7, "profiles": {"widths": [0.05, 0.1], "every": 2}, "checkpoint.every": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run, and its weights and averages."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, start_run(folder, OPTIONS | {"checkpoint.keep": 9})


def content(folder) -> dict[str, bytes]:
    """All files of a run's profiles."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "profiles").rglob("*"))
            if path.is_file()}


def test_snapshots_are_taken_at_intervals_and_at_the_end(whole):
    folder, _ = whole
    assert list_names(folder / "profiles") == ["000002", "000004", "000006", "000007"]
    for path in (folder / "profiles").iterdir():
        assert list_names(path) == ["manifest.json", "student-0.05.safetensors", "student-0.1.safetensors"]
        verify(path)
    last, kept = folder / "profiles" / "000007", folder / "checkpoints" / "000007"
    for width in (0.05, 0.1):
        a, b = (read_tensors(path) for path in (last / f"student-{width}.safetensors",
                                                kept / f"student-profile-{width}.safetensors"))
        assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
    assert describe_contents(kept)["averages"] == "student at 0.9, student of width 0.05, student of width 0.1"


def test_profiles_change_nothing_else_and_are_off_by_default(tmp_path, whole):
    plain = start_run(tmp_path / "run", {"train.steps": 7})
    assert all(torch.equal(a, b) for a, b in zip(plain, whole[1], strict=True))
    assert not (tmp_path / "run" / "profiles").exists()


def test_checkpoints_go_and_snapshots_stay(tmp_path):
    start_run(tmp_path / "run", OPTIONS | {"checkpoint.every": 1, "checkpoint.keep": 2})
    assert list_names(tmp_path / "run" / "checkpoints") == ["000006", "000007"]
    assert list_names(tmp_path / "run" / "profiles") == ["000002", "000004", "000006", "000007"]


@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_run_has_the_same_profiles(tmp_path, whole, step):
    """And those after the checkpoint, which are of steps that are taken anew, are not waited for."""
    folder, expected = whole
    cut(folder, tmp_path / "run", step)
    for path in (tmp_path / "run" / "profiles" / "000007").iterdir():
        path.write_bytes(b"of another run")
    again = start_run(tmp_path / "run", OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    assert content(tmp_path / "run") == content(folder) and list_names(tmp_path / "run" / "profiles")[0] == "000002"


def test_what_is_no_longer_of_the_run_is_gone_before_a_step_is_taken(tmp_path, whole):
    """The end of a shorter run, of which the way that is gone now knows nothing."""
    folder, _ = whole
    cut(folder, tmp_path / "run", 6)
    seen = []
    start_run(tmp_path / "run", OPTIONS | {"train.steps": 8, "optimizer.lr": 1e-3},
              [Watcher(7, lambda averages, step, folder: seen.append((step, list_names(folder / "profiles"))))])
    assert seen[0] == (7, ["000002", "000004", "000006"])
    assert list_names(tmp_path / "run" / "profiles") == ["000002", "000004", "000006", "000008"]


def test_going_back_keeps_later_snapshots_aside(tmp_path, whole):
    folder, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    _, config, _ = make_run(tmp_path / "x", OPTIONS)
    go_back(tmp_path / "run" / "checkpoints", 3, config)
    assert list_names(tmp_path / "run" / "profiles") == ["000002", "000004.later", "000006.later", "000007.later"]
    start_run(tmp_path / "run", OPTIONS | {"optimizer.lr": 1e-3})
    changed = [name for name, value in content(folder).items() if content(tmp_path / "run")[name] != value]
    assert changed and not any(name.startswith("profiles/000002") for name in changed)


def test_another_width_cannot_be_begun_later(tmp_path, whole):
    cut(whole[0], tmp_path / "run", 3)
    with pytest.raises(PidistillError, match=r"holds no profile of the width 0\.2: `profiles\.widths` cannot change"):
        start_run(tmp_path / "run", OPTIONS | {"profiles": {"widths": [0.05, 0.2], "every": 2}})


@pytest.mark.parametrize("widths, said", [("[0.1, 0.1]", "must be different widths"),
                                          ("[0.3]", "less than or equal to 0.2886"),
                                          ("[0]", "greater than or equal to 0.001"), ("[wide]", "valid number"),
                                          ("0.1", "valid tuple")])
def test_widths_that_no_profile_has(tmp_path, cli, widths, said):
    error = cli("distill", "--teacher", "gaussian:2", "--set", f"profiles.widths={widths}",
                "--set", "train={steps: 1, batch: 2}", "--out", tmp_path / "run").error()
    assert "profiles.widths" in error and said in error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_a_warning_and_the_run_goes_on(tmp_path, whole, monkeypatch, capsys, code):
    """One snapshot is missing then; whatever is left still gives averages."""
    write = snapshots.write_folder

    def fill(folder, *rest):
        def fail(stage):
            if folder.name == "000004" and stage == "student-0.1 written":
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as full:
            full.setattr(folders, "mark_stage", fail)
            write(folder, *rest)

    monkeypatch.setattr(snapshots, "write_folder", fill)
    again = start_run(tmp_path / "run", OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(whole[1], again, strict=True))
    said = " ".join(capsys.readouterr().err.split())
    assert f"000004: {os.strerror(code)}. The run goes on without this snapshot of its profiles" in said
    assert list_names(tmp_path / "run" / "profiles") == ["000002", "000006", "000007"]


def kill_at(number: int, folder) -> None:
    """Train, and be killed at a stage of what is written of profiles and checkpoints."""
    seen = []

    def mark(stage):
        seen.append(stage)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    for module in (folders, checkpoint_writer):
        module.mark_stage = mark
    start_run(folder, OPTIONS)


@pytest.mark.parametrize("number", [1, 4, 9, 15, 30, *(pytest.param(number, marks=pytest.mark.slow) for number in (
        2, 3, 6, 7, 8, 12, 20, 25, 40, 45, 50))])
def test_killed_anywhere_the_profiles_are_those_of_the_undisturbed_run(tmp_path, whole, number):
    folder, expected = whole
    assert exit_code(in_clean_child(kill_at, number, tmp_path / "run")) == -signal.SIGKILL
    clean(tmp_path / "run")
    assert all(not name.startswith(".") for path in (tmp_path / "run").glob("profiles") for name in list_names(path))
    again = start_run(tmp_path / "run", OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    assert content(tmp_path / "run") == content(folder)


def test_verbs_of_a_run_in_stages_take_any_width(tmp_path, cli):
    """The last stage's profiles; several rates and widths in one table."""
    done = run_verb("distill", "--teacher", "gaussian:2,modes=4,std=0.2", "--out", tmp_path / "run", "--set",
                    "student={init: random, net: {name: mlp, width: 16, depth: 2}}", "--set", "evaluate.num=8", "--set",
                    "train={steps: 12, batch: 8}", "--set", "profiles={widths: [0.05, 0.1], every: 2}", "--set",
                    "objective={name: pid_corrected, first: {train: {steps: 3}}, fake: {name: mlp, width: 16}}",
                    "--set", "grid.points=10")
    assert done.returncode == 0, done.stderr[-1000:]
    stage = tmp_path / "run" / "2-pid_corrected"
    assert (stage / "profiles" / "000012").is_dir()
    a, b = (load_student(path, ema="width:0.12") for path in (tmp_path / "run", stage))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    out = cli("evaluate", tmp_path / "run", "--ema", "0.99995,width:0.05,width:0.12@10", "--num", 8)
    assert out.code == 0 and "student, EMA width:0.05" in out.out and "student, EMA width:0.12@10" in out.out, out.err
    assert cli("sample", tmp_path / "run", "--ema", "width:0.07", "--out", tmp_path / "a.npz", "--seeds", "0-3").code == 0
    assert "cannot be had" in cli("sample", tmp_path / "run", "--ema", "width:0.001", "--out", tmp_path / "b.npz").error()
    assert "--ema takes rates" in cli("trajectory", tmp_path / "run", "--ema", "0.9,width:0.1").error()
