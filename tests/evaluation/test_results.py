"""Measurements as values and as JSON, and what is reported of repeats."""

from __future__ import annotations

import json

import pytest

from pidistill.evaluation.evaluate import evaluate_repeats
from pidistill.evaluation.results import Evaluation, Measurement, Repeats
from pidistill.evaluation.tables import tabulate_repeats
from pidistill.models.samplers.base import Sampler
from pidistill.models.teachers.gaussian import gaussian

FIRST = Measurement(35, 10.0, 2.0, {"fid": 2.5, "kid": 0.01, "kid_std": 0.002}, {"seeds": "0-9"})
SECOND = Measurement(35, 30.0, 1.0, {"fid": 2.0, "kid": 0.03, "kid_std": 0.001}, {"seeds": "10-19"})


@pytest.fixture
def teacher():
    return gaussian("1x16x16,mean=-0.5,std=0.4")


def test_a_record_is_flat_and_comes_back_from_json():
    record = json.loads(json.dumps(FIRST.record()))
    assert record == {"nfe": 35, "images_per_s": 10.0, "seconds": 2.0, "fid": 2.5, "kid": 0.01, "kid_std": 0.002,
                      "seeds": "0-9"}
    assert Measurement.from_record(record, {"seeds": "0-9"}) == FIRST
    assert "seconds" not in Measurement(1, 2.0).record()
    with pytest.raises(KeyError):
        Measurement.from_record({"rows": []}, {})


def test_speedup_is_that_of_the_student_over_the_teacher():
    evaluation = Evaluation({"teacher": FIRST, "student": Measurement(1, 250.0), "student, EMA 0.9": Measurement(1, 1.0)})
    assert evaluation.speedup == 25 and evaluation.record()["speedup"] == 25
    assert evaluation.record()["teacher"] == FIRST.record()
    assert Evaluation({"teacher": FIRST}).speedup is None and "speedup" not in Evaluation({"teacher": FIRST}).record()


def test_a_summary_is_of_each_model_and_metric():
    repeats = Repeats([Evaluation({"a": FIRST, "b": SECOND}), Evaluation({"a": SECOND, "b": SECOND})], ["fid", "kid"])
    assert repeats.minimum.models["a"] == Measurement(35, 20.0, metrics={"fid": 2.0, "kid": 0.01})  # of the speed the mean
    assert repeats.mean.models["a"].metrics == pytest.approx({"fid": 2.25, "kid": 0.02})
    assert repeats.mean.models["b"].metrics == {"fid": 2.0, "kid": 0.03}
    record = repeats.record()
    assert record["repeats"][1]["a"] == SECOND.record() and record["minimum"]["a"]["fid"] == 2.0
    assert list(record) == ["repeats", "minimum", "mean"] and "speedup" not in record["mean"]


def test_repeats_take_disjoint_seeds_and_show_minimum_and_mean(teacher):
    options = {"teacher": teacher, "students": None, "batch": 20, "features": "digits", "sampler": Sampler("ddim", 2)}
    repeats = evaluate_repeats(3, 20, 5, **options)
    summary = repeats.record()
    spans = [result["teacher"]["seeds"] for result in summary["repeats"]]
    assert spans == ["5-24", "25-44", "45-64"]
    values = [result["teacher"]["fd"] for result in summary["repeats"]]
    assert len(set(values)) == 3 and summary["minimum"]["teacher"]["fd"] == min(values)
    assert summary["mean"]["teacher"]["fd"] == pytest.approx(sum(values) / 3)
    rows = tabulate_repeats(repeats, spans)
    assert [row[0] for row in rows[1:]] == ["teacher, seeds 5-24", "teacher, seeds 25-44", "teacher, seeds 45-64",
                                            "teacher, minimum", "teacher, mean"]
    assert rows[4][2] == f"{min(values):.2f}"
