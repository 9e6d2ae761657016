"""The verb that inspects says what models are."""

from __future__ import annotations

from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP


def test_inspect_says_what_things_are(cli, runs):
    for what, words in ((runs / "student", ["student: 1 evaluation", "steps done", "song_unet", "1x8x8", "0.002 to 80"]),
                        (runs / "student" / "student", ["student: 1 evaluation", "versions"]),
                        (runs / "teacher", ["teacher (Preconditioned)", "final_loss"]), ("gaussian:2", ["unconditional"])):
        result = cli("inspect", what)
        assert result.code == 0, result.err
        assert [word for word in words if word not in result.out] == []


def test_inspect_a_student_without_provenance(cli, tmp_path):
    make_student(gaussian("2"), "random", MLP).save(tmp_path / "s")
    result = cli("inspect", tmp_path / "s")
    assert result.code == 0 and "student" in result.out
