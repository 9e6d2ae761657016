"""What the plots show, read from matplotlib's axes; and their files."""

from __future__ import annotations

import pytest
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.evaluation import plots
from pidistill.evaluation.plots import Curve, Point, plot_comparison, plot_curves
from pidistill.evaluation.published import PUBLISHED


@pytest.fixture
def axes(monkeypatch):
    """Axes of the figures that are saved."""
    saved = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure.axes[0]) or save(figure, path))
    return saved


def curve(label: str, *runs: list[tuple[int, float]]) -> Curve:
    return Curve(label, [{"fid": run} for run in runs])


def test_a_curve_has_a_colour_and_each_run_a_line(axes, tmp_path):
    plot_curves(tmp_path / "new" / "c.png", [curve("a", [(1, 5.0), (2, 4.0)], [(1, 5.5), (2, 4.5)]), curve("b", [(1, 3.0)])],
                "fid", "FID")
    lines = axes[0].get_lines()
    assert [line.get_color() for line in lines] == ["C0", "C0", "C1"]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]
    assert [list(line.get_ydata()) for line in lines] == [[5.0, 4.0], [5.5, 4.5], [3.0]]
    legend = axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"] and "seeds" in legend.get_title().get_text()
    assert axes[0].get_ylabel() == "FID" and axes[0].get_yscale() == "linear" and axes[0].get_ylim()[0] == 0
    with Image.open(tmp_path / "new" / "c.png") as picture:
        assert picture.size == (660, 462)


@pytest.mark.parametrize("values, scale", [([100.0, 50.0, 20.0, 19.0, 2.0, 1.0], "log"),
                                           ([100.0, 9.0, 8.0, 7.0, 6.0, 5.0], "linear")])
def test_the_axis_is_logarithmic_where_late_values_span_a_decade(axes, tmp_path, values, scale):
    """The first quarter of a run, in which every curve falls, does not count."""
    plot_curves(tmp_path / "c.png", [curve("a", list(enumerate(values)))], "fid", "FID")
    assert axes[0].get_yscale() == scale and axes[0].get_legend().get_title().get_text() == ""


def test_a_run_without_the_metric_is_an_empty_line(axes, tmp_path):
    plot_curves(tmp_path / "c.png", [curve("a", [(1, 2.0)]), Curve("b", [{}])], "fid", "FID")
    assert [len(line.get_xdata()) for line in axes[0].get_lines()] == [1, 0]


def test_samplers_are_lines_students_stars_and_published_numbers_crosses(axes, tmp_path):
    points = [Point("heun:8", 15, 4.0, "heun"), Point("heun:4", 7, 9.0, "heun"), Point("student", 1, 5.0)]
    plot_comparison(tmp_path / "c.png", points, PUBLISHED["cifar10"], "fid", "FID")
    star, heun, *crosses = axes[0].get_lines()
    assert (star.get_marker(), star.get_label(), list(star.get_xdata())) == ("*", "student", [1])
    assert heun.get_label() == "heun" and list(heun.get_xdata()) == [7, 15]  # in order of the evaluations
    assert len(crosses) == len(PUBLISHED["cifar10"]) and {cross.get_marker() for cross in crosses} == {"x"}
    assert "PID" in [text.get_text() for text in axes[0].texts]
    assert axes[0].get_xscale() == axes[0].get_yscale() == "log"


def test_published_numbers_of_another_metric_are_left_out(axes, tmp_path):
    plot_comparison(tmp_path / "c.png", [Point("student", 1, 9.0)], PUBLISHED["cifar10"], "is", "IS")
    assert len(axes[0].get_lines()) == 1 + sum(row.inception_score is not None for row in PUBLISHED["cifar10"])


def test_numbers_that_have_no_logarithm_are_shown(axes, tmp_path):
    """An unbiased KID may be below 0."""
    plot_comparison(tmp_path / "c.png", [Point("a", 1, -0.002), Point("b", 9, 0.5)], [], "kid", "KID")
    plot_curves(tmp_path / "d.png", [curve("a", [(1, -0.002), (2, 0.5)])], "fid", "FID")
    plot_curves(tmp_path / "e.png", [curve("a", [(1, 0.0), (2, 0.0)])], "fid", "FID")
    for found, lowest in zip(axes, (-0.002, -0.002, 0)):
        assert found.get_yscale() == "linear" and found.get_ylim()[0] <= lowest < found.get_ylim()[1]


@pytest.mark.parametrize("name", ["student $a", "student $\\foo$", "student a\\$b_$", "a^{b", "student \u65e5\u672c"])
def test_names_are_no_formulas(axes, tmp_path, name):
    plot_comparison(tmp_path / "c.png", [Point(name, 1, 2.0)], [], "fid", "FID")
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [name]


def test_a_plot_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PidistillError, match="cannot write"):
        plot_curves(tmp_path / "file" / "c.png", [curve("a", [(1, 2.0)])], "fid", "FID")


def test_a_curve_s_record_has_its_facts():
    runs = [{"fid": [(1, 2.0)]}]
    assert Curve("a", runs, {"seed": 3}).record() == {"label": "a", "seed": 3, "runs": runs}
