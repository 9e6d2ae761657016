"""Results are plotted: a metric over training, and quality against evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.evaluation.published import PublishedResult


@dataclass(frozen=True)
class Curve:
    """A curve is what several training seeds, or sets of images, gave for one setting.

    runs: a line each, {metric: [(step, value), ...]}.
    facts: of the setting, for the record.
    """

    label: str
    runs: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Write the curve for JSON."""
        return {"label": self.label, **self.facts, "runs": self.runs}


@dataclass(frozen=True)
class Point:
    """A point is a method's place in the plot of quality against evaluations.

    nfe: evaluations of the network. value: of the metric.
    sampler: its name without steps; None for a student.
    """

    name: str
    nfe: int
    value: float
    sampler: str | None = None


def plot_curves(path: Path, curves: Sequence[Curve], metric: str, unit: str) -> None:
    """Write a PNG of the metric over training iterations, one colour a curve, one line a run (the paper's Figures 3 to 7).

    metric: its key in the curves' runs. unit: its name at the axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    lowest, highest = float("inf"), 0.0
    for k, curve in enumerate(curves):
        for n, run in enumerate(curve.runs):
            steps, values = zip(*run[metric]) if run.get(metric) else ((), ())
            axes.plot(steps, values, color=f"C{k}", linestyle=("-", "--", ":")[n % 3], marker=".", markersize=4,
                      label=curve.label if n == 0 else None)
            lowest, highest = min([lowest, *values]), max([highest, *values[len(values) // 4:]])
    if highest > 10 * lowest > 0:
        axes.set_yscale("log")
    elif lowest >= 0:  # an unbiased KID may be below
        axes.set_ylim(0, (highest or 1) * 1.05)
    axes.set_xlabel("training iterations")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    several = max(len(curve.runs) for curve in curves) > 1
    write_legend(axes, fontsize="small", title="line styles: training seeds" if several else None, title_fontsize="small")
    save_figure(figure, path)


def plot_comparison(path: Path, points: Sequence[Point], published: Sequence[PublishedResult], metric: str,
                    unit: str) -> None:
    """Write a PNG of quality against evaluations: lines of samplers, stars of students, small crosses of published numbers.

    metric: its key, whose values the points have, and whose published numbers are shown.
    unit: its name at the axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        if point.sampler:
            lines.setdefault(point.sampler, []).append((point.nfe, point.value))
        else:
            axes.plot(point.nfe, point.value, marker="*", markersize=14, linestyle="", label=point.name)
    for name, places in lines.items():
        axes.plot(*zip(*sorted(places)), marker="o", markersize=4, label=name)
    crosses = [(row, row.metrics[metric]) for row in published if metric in row.metrics]
    for k, (row, value) in enumerate(crosses):
        axes.plot(row.nfe, value, marker="x", color="grey", linestyle="", label=None if k else "published")
        axes.annotate(row.method.partition(" (")[0], (row.nfe, value), fontsize=6, color="grey",
                      xytext=(3, 2), textcoords="offset points")
    values = [point.value for point in points] + [value for _, value in crosses]
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        if axis is axes.yaxis and min(values, default=1) <= 0:  # an unbiased KID may be: no logarithm would show it
            continue
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("evaluations of the network")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3, which="both")
    write_legend(axes, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def write_legend(axes: Any, **options: Any) -> None:
    """Add a legend, with labels as they are: a folder's $name$ is no formula. options: of matplotlib's own."""
    for text in axes.legend(**options).get_texts():
        text.set_parse_math(False)


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG and close it. Raises PidistillError if the file cannot be written."""
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise PidistillError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        plt.close(figure)
