"""Numbers in the tables that people read."""

from __future__ import annotations

import pytest

from pidistill.evaluation.results import Evaluation, Measurement
from pidistill.evaluation.tables import format_metric, order_metrics, tabulate


def test_table_shows_every_metric():
    head, row = tabulate(Evaluation({"student": Measurement(1, 9.6, metrics={
        "fid": 2.5, "is": 9.0, "kid": 0.00123, "precision": 0.5, "recall": 0.25})}))
    assert head == ["", "evaluations", "FID", "IS", "KID x 1000", "precision", "recall", "images/s"]
    assert row == ["student", "1", "2.50", "9.00", "1.23", "0.500", "0.250", "10"]


def test_table_shows_what_there_is():
    results = Evaluation({"teacher": Measurement(35, 10.0, metrics={"fd": 0.3}),
                          "student": Measurement(1, 200.0, metrics={"trajectory_rmse": 0.12345})})
    head, teacher, student, ratio = tabulate(results)
    assert teacher == ["teacher", "35", "0.30", "-", "10"] and student == ["student", "1", "-", "0.123", "200"]
    assert ratio[1] == "35x fewer" and ratio[4] == "20.0x" and len(head) == 5


@pytest.mark.parametrize("key, value, text", [
    ("fid", 2.345, "2.35"), ("fd_dinov2", 101.26, "101.3"), ("kid", 0.0012344, "1.234"), ("recall", 0.62, "0.620")])
def test_every_metric_has_its_digits(key, value, text):
    assert format_metric(key, value) == text


def test_metrics_stand_in_one_order_and_deviations_are_left_out():
    assert order_metrics([["kid", "kid_std"], ["is", "fid", "is_std"], ["kid"]]) == ["fid", "is", "kid"]
