"""`pidistill evaluate`: by several processes, of every checkpoint of a run, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from pidistill.files.reading import read_json
from pidistill.jobs.evaluate_run import load_checkpoints, load_subjects
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.pid import PID
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.runs import run_verb


def test_two_processes_give_the_number_of_one(tmp_path):
    args = ["evaluate", "gaussian:1x16x16,modes=3,std=0.2", "--features", "digits", "--metrics", "fd,is,kid,pr",
            "--images", 50, "--batch", 8, "--sampler", "ddpm:3"]
    found = []
    for n in (1, 2):
        done = run_verb(*args, "--out", tmp_path / f"{n}.json", processes=n)
        assert done.returncode == 0, done.stderr[-1000:]
        found.append(read_json(tmp_path / f"{n}.json"))
        assert done.stdout.count("│ teacher") == 1
    for key in ("fd", "is", "is_std", "kid", "kid_std", "precision", "recall"):
        assert found[0]["teacher"][key] == pytest.approx(found[1]["teacher"][key], rel=1e-9), key
    assert found[0]["teacher"]["nfe"] == found[1]["teacher"]["nfe"] == 3
    assert found[0]["seeds"] == ["0-49"] and {"commit", "versions", "command"} <= found[0].keys()


def test_every_checkpoint_and_rate_of_a_run(image_run):
    args = ["evaluate", image_run, "--checkpoints", "--features", "digits", "--num", 40, "--repeats", 2, "--batch", 20]
    done = run_verb(*args)
    assert done.returncode == 0, done.stderr[-1000:]
    record = read_json(image_run / "evaluation.json")
    assert list(record["curves"]) == ["0.0", "0.9"] and record["seeds"] == ["0-39", "40-79"]
    for rate, curve in record["curves"].items():
        assert len(curve["runs"]) == 2 and [step for step, _ in curve["runs"][0]["fd"]] == [2, 4, 6], rate
    values = [value for curve in record["curves"].values() for line in curve["runs"] for _, value in line["fd"]]
    assert len(set(values)) == 12
    with Image.open(image_run / "evaluation.png") as picture:
        assert picture.width > 300
    kept = sorted((image_run / "evaluation").iterdir())
    assert len(kept) == 12 and all(path.suffix == ".json" for path in kept)
    times = [path.stat().st_mtime_ns for path in kept]
    assert run_verb(*args).returncode == 0 and [path.stat().st_mtime_ns for path in kept] == times  # not measured again
    last = run_verb("evaluate", image_run, "--features", "digits", "--num", 40, "--metrics", "fd",
                    "--out", image_run / "last.json")
    assert last.returncode == 0, last.stderr
    # The student of the run is its last checkpoint's first average.
    result = read_json(image_run / "last.json")
    assert result["student"]["fd"] == pytest.approx(record["curves"]["0.0"]["runs"][0]["fd"][-1][1])
    assert "teacher" not in result


@pytest.mark.parametrize("args, words", [
    (["evaluate", "gaussian:2", "--metrics", "fid"], "needs a feature network"),
    (["evaluate", "gaussian:2", "--metrics", "fidd"], "did you mean 'fid'"),
    (["evaluate", "gaussian:2", "--sampler", "euler:2,3"], "one number of steps"),
    (["evaluate", "nowhere", "--checkpoints"], "holds no run"),
    (["evaluate", "gaussian:2", "--device", "abacus"], "abacus")])
def test_bad_input_is_one_line(cli, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("pidistill.files.downloads.download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    assert words in cli(*args).error()


def test_checkpoints_have_the_form_of_their_objective(image_run, monkeypatch):
    config = load_config(DistillConfig, image_run / "config.yaml")
    teacher = load_teacher(config.teacher)
    assert {student.form for *_, student in load_checkpoints(image_run, config, teacher)} == {"trajectory"}
    monkeypatch.setattr(PID, "form", "direct", raising=False)
    assert {student.form for *_, student in load_checkpoints(image_run, config, teacher)} == {"direct"}


def test_subjects_are_a_student_at_each_rate_with_its_teacher_or_without(image_run):
    cpu = torch.device("cpu")
    teacher, students = load_subjects(str(image_run), None, [0.0, 0.9], cpu, with_teacher=True)
    assert teacher.spec == "gaussian:1x16x16,mean=-0.5,std=0.4" and list(students) == ["student", "student, EMA 0.9"]
    weights = [torch.cat([p.flatten() for p in student.parameters()]) for student in students.values()]
    assert not torch.equal(*weights)
    absent, same = load_subjects(str(image_run), None, [0.0], cpu, with_teacher=False)
    assert absent is None and torch.equal(torch.cat([p.flatten() for p in same["student"].parameters()]), weights[0])
    alone, none = load_subjects("gaussian:2", None, [None], cpu, with_teacher=True)
    assert alone.shape == (2,) and none == {}
