"""Noise, network and files overlap, and nothing of the images changes."""

from __future__ import annotations

import threading

import pytest

from pidistill.core.threads import run_ahead


def own_threads() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def test_results_come_in_order_and_no_more_than_the_depth_are_begun():
    begun, release = [], threading.Event()

    def work(k: int) -> int:
        release.wait(60)
        return k * k

    def parts():
        for k in range(9):
            begun.append(k)
            yield k

    results = run_ahead(work, parts(), threads=3, depth=4)
    threading.Timer(0.01, release.set).start()
    assert next(results) == 0 and len(begun) == 5
    assert list(results) == [k * k for k in range(1, 9)]
    assert own_threads() == 0


def test_an_error_in_a_thread_is_raised_and_what_has_not_begun_is_dropped():
    done = []

    def work(k: int) -> None:
        if k == 2:
            raise OSError(28, "No space left on device")
        done.append(k)

    with pytest.raises(OSError, match="No space left"):
        list(run_ahead(work, range(1000), threads=1, depth=3))
    assert len(done) < 10 and own_threads() == 0
