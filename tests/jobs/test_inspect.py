"""What `inspect` says of teachers, students, runs and files of weights."""

from __future__ import annotations

import json

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.reading import sha256
from pidistill.jobs.inspect import describe
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP
from tests.training.checkpoints import write_checkpoints


def test_a_teacher():
    facts = describe("gaussian:1x8x8,mean=0.2,std=0.5")
    assert (facts["kind"], facts["shape"], facts["classes"]) == ("teacher (Gaussian)", "1x8x8", "none (unconditional)")
    assert facts["noise range"] == "0.002 to 80" and facts["sigma_data"] == 0.5
    assert facts["called"] == "for two images at t = 80, on cpu: it works"


def test_a_student_and_its_provenance(tmp_path):
    student = make_student(gaussian("2"), "random", MLP)
    student.save(tmp_path / "s", {"teacher": "gaussian:2"})
    facts = describe(str(tmp_path / "s"))
    assert facts["kind"] == "student: 1 evaluation an image" and facts["network"]["name"] == "mlp"
    assert facts["parameters"] == sum(p.numel() for p in student.net.parameters()) and facts["form"] == "trajectory"
    assert "form" not in describe("gaussian:2")
    assert facts["provenance"] == {"teacher": "gaussian:2"}


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    (tmp_path / "config.yaml").touch()
    assert describe(str(tmp_path)) == {
        "model": str(tmp_path), "run": "training run", "steps done": 0, "last loss": None, "newest checkpoint": None,
        "state": f"unfinished; continue with `pidistill resume {tmp_path}`"}
    records = [{"step": 20, "loss": 0.5}, {"step": 40, "loss": 0.25}, {"step": 45, "fd": 9.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "results.json").write_text('{"student": {"fd": 1.5}, "seconds": 3, "seeds": "0-9"}')
    write_checkpoints(tmp_path / "checkpoints", 30, 40)
    facts = describe(str(tmp_path))
    assert (facts["steps done"], facts["last loss"], facts["newest checkpoint"]) == (40, 0.25, "000040")
    assert (facts["networks"], facts["phases"]) == ("student", "pid")
    assert facts["averages"] == "student at 0.0, student at 0.5, student at 0.9" and "followers" not in facts
    assert facts["results"] == {"student": {"fd": 1.5}, "seconds": 3}


def test_a_run_of_several_phases_has_a_loss_of_each(tmp_path):
    """The last of each, in whichever line it stands; and a distillation of several runs says how far each is."""
    for folder in (tmp_path, tmp_path / "1-first", tmp_path / "2-second", tmp_path / "samples"):
        folder.mkdir(exist_ok=True)
    for folder in (tmp_path, tmp_path / "1-first", tmp_path / "2-second"):
        (folder / "config.yaml").touch()
    records = [{"step": 1, "loss/critic": 0.5, "loss/student": 0.75}, {"step": 2, "loss/critic": 0.25},
               {"step": 3, "fd": 9.0}]
    (tmp_path / "1-first" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert describe(str(tmp_path))["stages"] == {
        "1-first": {"steps done": 2, "last loss/critic": 0.25, "last loss/student": 0.75, "newest checkpoint": None},
        "2-second": {"steps done": 0, "last loss": None, "newest checkpoint": None}}


def test_a_file_of_several_weights(tmp_path):
    path, state = tmp_path / "w.pt", {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    torch.save({"model": state, "ema": {"decay": torch.tensor(0.9), "shadow_params": [*state.values()], "collected_params": [
        torch.ones(1)]}, "step": 3, "opt": {"state": {0: {"exp_avg": state["a"]}}}}, path)
    facts = describe(str(path))
    assert facts["entries"] == {"ema.shadow_params": "2 tensors, 10 numbers", "model": "2 tensors, 10 numbers"}
    torch.save({"model": state, "step": 3}, path)
    assert (describe(str(path))["parameters"], describe(str(path))["first"]) == (10, "a")
    torch.save({"opt": {"state": {0: {"exp_avg": state["a"]}}}}, path)
    with pytest.raises(PidistillError, match="no state dictionary of weights"):
        describe(str(path))


def test_a_file_of_weights(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, path)
    assert describe(str(path)) == {"model": str(path), "kind": "weights", "parameters": 10, "tensors": 2,
                                   "types": "1 float32, 1 float16", "first": "a", "sha256": sha256(path)}
