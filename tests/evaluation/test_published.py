"""The numbers of the paper's Tables 1 and 2."""

from __future__ import annotations

from pidistill.evaluation.published import PUBLISHED, PublishedResult
from pidistill.evaluation.tables import UNITS


def test_the_paper_s_own_rows():
    cifar10, imagenet64 = (next(row for row in PUBLISHED[table] if row.method == "PID")
                           for table in ("cifar10", "imagenet64"))
    assert cifar10 == PublishedResult("PID", "LPIPS", 1, 3.92, 9.13)
    assert imagenet64 == PublishedResult("PID", "LPIPS", 1, 9.49)


def test_rows_are_of_one_step_with_a_distance_or_of_many_without():
    """But for a GAN, which has one step and no distance."""
    assert {table: len(rows) for table, rows in PUBLISHED.items()} == {"cifar10": 15, "imagenet64": 10}
    for row in (row for rows in PUBLISHED.values() for row in rows):
        assert row.nfe == 1 if row.distance else row.nfe > 1 or "BigGAN" in row.method
        assert row.fid > 0 and row.metrics.keys() <= UNITS.keys()


def test_what_was_not_reported_is_left_out_of_the_metrics_and_null_in_the_record():
    row = PublishedResult("X", "L2", 1, 3.0)
    assert row.metrics == {"fid": 3.0}
    assert row.record() == {"method": "X", "distance": "L2", "nfe": 1, "fid": 3.0, "is": None}
    assert PublishedResult("X", "", 5, 3.0, 9.0).metrics == {"fid": 3.0, "is": 9.0}
