"""What a corrected run tells of itself, and when it warns."""

from __future__ import annotations

import pytest
import torch

from pidistill.jobs.distillation import Distillation
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.teachers.base import load_teacher
from pidistill.training.trainer import exhaust
from tests.helpers import MLP
from tests.objectives.test_pid_corrected import configure, corrected, run, weights
from tests.runs import metrics


def test_a_run_tells_whether_it_converges(tmp_path):
    """With previews; and looking changes nothing of the run."""
    plain = run(tmp_path / "a")
    options = {"preview.every": 3, "objective.share": 0.5, "student.init": "random", "student.net": MLP}
    config = configure(tmp_path / "b", **options)
    (tmp_path / "b").mkdir()
    job = Distillation(config, load_teacher(config.teacher))
    exhaust(job.train_in_steps(tmp_path / "b"))
    assert torch.equal(weights(job.objective), plain)
    lines = [line for line in metrics(tmp_path / "b") if "spread" in line]
    assert [line["step"] for line in lines] == [3, 6]
    assert lines[0].keys() == {"step", "rms_to_teacher", "spread", "fake/student", "fake/teacher", "alignment"}
    assert all(-1 <= line["alignment"] <= 1 for line in lines)


def test_what_is_told_is_so():
    """A student with the teacher's images has spread 1 and distance 0; one image has spread 0, which is warned of, once."""
    objective = corrected(shaken=False)

    class Exact(torch.nn.Module):
        def sample(self, seeds, labels, **_):
            return sample_teacher(objective.teacher, seeds, labels, decode=False)

    found = objective.diagnose(Exact())
    assert found["rms_to_teacher"] == 0 and found["spread"] == 1 and found["fake/student"] == found["fake/teacher"] > 0
    assert "alignment" not in found  # the fake is the teacher still: there is no correction


def test_a_collapse_is_warned_of_once(capsys):
    objective = corrected(share=1.0)

    class Single(torch.nn.Module):
        def sample(self, seeds, labels, **_):
            return 0.3 * sample_teacher(objective.teacher, seeds, labels, decode=False)

    for _ in range(2):
        assert objective.diagnose(Single())["spread"] == pytest.approx(0.3, rel=1e-4)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("WARNING: the student's images spread 0.30 times as far as the teacher's") == 1


def test_the_alignment_of_gradients():
    """Of a loss with itself it is 1, with its negative -1; and notes of the run are as they were."""
    objective = corrected()
    objective.note("gap/low", torch.ones(3))
    before = {key: value.clone() for key, value in objective.notes.items()}
    assert abs(objective.diagnosis.measure_alignment()["alignment"]) < 1
    objective.draw_correction, objective.correct = objective.draw, lambda batch, step=0: -2 * objective.follow(batch)
    assert objective.diagnosis.measure_alignment()["alignment"] == pytest.approx(-1, abs=1e-5)
    assert objective.notes.keys() == before.keys() and torch.equal(objective.notes["gap/low"], before["gap/low"])
