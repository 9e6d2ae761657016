"""`pidistill compare`: its report, and that its numbers are those of the models."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.core.registry import find_member, list_members
from pidistill.core.seeds import labels_of
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.results import Measurement
from pidistill.evaluation.subject import Subject
from pidistill.files.folders import write_folder, write_text
from pidistill.files.reading import read_json
from pidistill.jobs.compare import Method, compare, name_student, read_distance
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import collect_tensors, describe_teacher, load_teacher
from pidistill.models.teachers.gaussian import gaussian
from pidistill.objectives.base import Setup
from tests.helpers import MadePairs, tiny_teacher
from tests.runs import run_verb

SHAPE = (1, 16, 16)


@pytest.fixture
def teacher():
    return gaussian("1x16x16,mean=-0.5,std=0.4")


def test_compare_writes_its_report(image_run, tmp_path):
    args = ["compare", "--teacher", "gaussian:1x16x16,mean=-0.5,std=0.4", "--students", image_run, "--samplers", "euler:2,4",
            "heun:3", "--features", "digits", "--num", 40, "--batch", 16, "--published", "cifar10", "--out", tmp_path / "c"]
    done = run_verb(*args)
    assert done.returncode == 0, done.stderr[-1000:]
    record = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["method"] for row in record["rows"]] == ["teacher, euler:2", "teacher, euler:4", "teacher, heun:3",
                                                         "student run"]
    assert [row["nfe"] for row in record["rows"]] == [2, 4, 5, 1] and record["rows"][-1]["distance"] == "l1"
    assert all(row["fd"] > 0 and row["is"] >= 1 and row["images_per_s"] > 0 for row in record["rows"])
    pid = next(row for row in record["published"] if row["method"] == "PID")
    assert (pid["nfe"], pid["fid"], pid["is"]) == (1, 3.92, 9.13)  # Table 1
    text = (tmp_path / "c" / "compare.md").read_text()
    assert "published" in text and "| student run | l1 | 1 |" in text
    assert text.count("\n|") == 2 + 4 + 1 + len(record["published"])
    with (tmp_path / "c" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["published"] for row in rows] == ["False"] * 4 + ["True"] * len(record["published"])
    for name in ("compare.png", "compare-samples.png"):
        with Image.open(tmp_path / "c" / name) as picture:
            assert picture.width > 300
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "measured").iterdir()}
    more = run_verb(*args[:-8], "--samplers", "euler:2,4,3", "--batch", 16, "--num", 40, "--out", tmp_path / "c")
    assert more.returncode == 0, more.stderr[-1000:]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "measured").iterdir()}
    assert len(after) == len(kept) + 1 and all(after[path] == kept[path] for path in kept)  # only euler:3 was measured


def test_students_of_all_objectives_are_in_one_table(tmp_path):
    own, names = tiny_teacher(), []
    write_folder(tmp_path / "t", collect_tensors(own), {"config": describe_teacher(own)})
    teacher = load_teacher(str(tmp_path / "t"))
    for name in list_members("objectives"):
        member = find_member("objectives", name)
        if member.setup is Setup:
            net = {"name": "mlp", "width": 8} if member.form == "direct" else None
            student = make_student(teacher, "random" if net else "teacher", net,
                                   **member.plan_student(teacher, {}, MadePairs(times=(20.0, 2.0, 0.5, 0.0))))
            names.append(student.save(tmp_path / name, {"teacher": teacher.spec}).name)
    compare(teacher, [str(tmp_path / name) for name in names], ["heun:3"], tmp_path / "c", num=8, batch=4)
    rows = read_json(tmp_path / "c" / "compare.json")["rows"]
    assert [row["method"] for row in rows] == ["teacher, heun:3", *(f"student {name}" for name in names)]
    assert all(row["nfe"] == 1 for row in rows[1:]) and len(names) == 13


def test_the_level_that_a_student_draws_from_is_part_of_what_is_measured():
    teacher = tiny_teacher()
    near, far = (Subject.of(make_student(teacher, form="denoiser", drawing_time=t)).settings for t in (1.0, 80.0))
    assert near["weights"] == far["weights"] and near != far


def test_comparison_is_of_the_models(teacher, tmp_path):
    compare(teacher, [], ["ddim:3"], tmp_path, features="digits", num=40, batch=40)
    row, = read_json(tmp_path / "compare.json")["rows"]
    images = sample_teacher(teacher, range(40), labels_of(range(40), 0), sampler=Sampler("ddim", 3), batch_size=40)
    assert row["fd"] == pytest.approx(Measure("digits", None, SHAPE)(images)["fd"], rel=1e-6)


@pytest.mark.parametrize("args, words", [
    (["compare", "--teacher", "gaussian:2"], "nothing to compare"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "eulr:2"], "did you mean 'euler'"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "euler:2", "--published", "cifar"], "did you mean 'cifar10'"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "euler:2", "--metrics", "fid"], "needs a feature network"),
    (["compare", "--teacher", "gaussian:2", "--students", "nowhere"], "does not exist"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "euler:2", "eulr:2"], "did you mean 'euler'"),
    (["compare", "--teacher", "gaussian:2", "--students", "nowhere", "elsewhere"], "nowhere does not exist"),
    (["compare", "--samplers", "euler:2"], "--teacher")])
def test_bad_input_is_one_line(cli, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("pidistill.files.downloads.download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    assert words in cli(*args).error()


def test_students_are_named_by_as_much_of_their_path_as_tells_them_apart():
    names: dict[str, object] = {}
    for folder in ("runs/a/student", "runs/b", "other/b/student", "/b"):
        try:
            names[name_student(folder, names)] = folder
        except PidistillError as error:
            assert str(error) == "the student /b is named twice"
    assert list(names) == ["student a", "student b", "student other/b"]


@pytest.mark.parametrize("name, cell", [("student a|b", r"student a\|b"), ("student a\nb", "student a?b"),
                                        ("a\udcff", "a?")])
def test_names_do_not_break_the_table(name, cell):
    method = Method(name, Measurement(1, 2.0, 3.0, {"fd": 4.0}))
    assert method.cells(["fd"]) == [cell, "", "1", "4.00", "2.0", "3.0"] and method.record()["method"] == name


@pytest.mark.parametrize("text, distance", [
    ("objective: {name: pid, distance: l1}", "l1"), ("objective: {name: pid, distance: {name: pseudo_huber, c: 1}}",
                                                     "pseudo_huber"),
    ("objective: {name: pid}", "-"), ("out: x", "-")])
def test_the_distance_is_that_of_the_run(tmp_path, text, distance):
    assert read_distance(str(tmp_path)) == "-"
    write_text(tmp_path / "config.yaml", text)
    assert read_distance(str(tmp_path)) == distance


def test_a_sampler_that_is_named_twice_is_one_row(teacher, tmp_path):
    compare(teacher, [], ["euler:2", "euler:2"], tmp_path, others=["heun:3", "euler:2"], features="digits", num=40, batch=40)
    rows = read_json(tmp_path / "compare.json")["rows"]
    assert [(row["method"], row["sampler"], row["nfe"]) for row in rows] == [
        ("teacher, euler:2", "euler:2", 2), ("teacher, heun:3", "heun:3", 5)]
    with Image.open(tmp_path / "compare-samples.png") as picture:
        assert picture.height < 1.3 * picture.width * 2 / 12  # two rows of twelve images
