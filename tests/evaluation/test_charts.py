"""Charts as SVG: what they show is where it should be, and is said in words too."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from pidistill.evaluation.charts import HEIGHT, LEFT, MOST_POINTS, RIGHT, WIDTH, draw_chart, format_tick, list_ticks, thin


def lines_of(figure: str) -> list[list[tuple[float, float]]]:
    svg = ET.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL)[0])
    return [[tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in svg.iter("polyline")]


def test_points_are_in_their_places():
    figure = draw_chart({"a": [(0, 1.0), (50, 2.0), (100, 3.0)], "b": [(0, 3.0), (100, 1.0)]}, "Loss", "nats")
    (a, b) = lines_of(figure)
    assert a[0][0] == LEFT and a[-1][0] == WIDTH - RIGHT and a[1][0] == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=0.1)
    assert a[0][1] > a[1][1] > a[2][1]  # upwards
    assert a[0][1] == b[1][1] and a[2][1] == b[0][1] and a[0][1] <= HEIGHT
    assert a[1][1] == pytest.approx((a[0][1] + a[2][1]) / 2, abs=0.1)
    assert "Loss, nats over steps" in figure and "a from 1 to 3; b from 3 to 1" in figure


def test_orders_of_magnitude_are_logarithmic():
    (line,) = lines_of(draw_chart({"a": [(0, 100.0), (1, 10.0), (2, 1.0)]}, "Loss"))
    assert line[1][1] == pytest.approx((line[0][1] + line[2][1]) / 2, abs=0.1)
    (line,) = lines_of(draw_chart({"a": [(0, 100.0), (1, 10.0), (2, 1.0)]}, "Loss", logarithmic=False))
    assert line[1][1] != pytest.approx((line[0][1] + line[2][1]) / 2, abs=20)


def test_names_are_no_markup():
    figure = draw_chart({"<b>&": [(0, 1), (1, 2)], "x": [(0, 1), (1, 2)]}, 'a "title" <i>')
    assert "<b>" not in figure and "<i>" not in figure.replace('<i style', "")
    lines_of(figure)


def test_what_is_not_finite_is_left_out():
    (line,) = lines_of(draw_chart({"a": [(0, 1), (1, float("nan")), (2, float("inf")), (3, 2)]}, "x"))
    assert len(line) == 2
    assert draw_chart({"a": [(0, 1)]}, "x") == draw_chart({}, "x") == ""
    (line,) = lines_of(draw_chart({"a": [(0, 0.0), (1, 0.0)]}, "x"))
    assert len(line) == 2


def test_long_lines_are_thinned_with_their_ends():
    points = [(k, float(k)) for k in range(10_000)]
    kept = thin(points)
    assert len(kept) == MOST_POINTS and kept[0] == points[0] and kept[-1] == points[-1]


@pytest.mark.parametrize("low, high", [(0, 1), (0.1, 0.11), (-3, 7), (1e-5, 3e-5), (5, 5), (0, 123456)])
def test_ticks_are_round_and_cover(low, high):
    ticks = list_ticks(low, high, False)
    assert 2 <= len(ticks) <= 7 and ticks == sorted(ticks) and ticks[0] <= low + 1e-12
    assert all(len(format_tick(tick)) <= 8 for tick in ticks)


def test_numbers_are_written_briefly():
    assert [format_tick(x) for x in (0, 0.25, 12_000, 1e-4, -2.5e-5, 999)] == ["0", "0.25", "12k", "1e-4", "-2.5e-5", "999"]
