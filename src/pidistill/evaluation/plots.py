"""Plots of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError


def plot_curves(path: Path, record: dict[str, Any], metric: str, unit: str) -> None:
    """PNG: the metric over training iterations, one colour a curve, one line a seed (the paper's Figures 3 to 7)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    lowest, highest = float("inf"), 0.0
    for k, curve in enumerate(record["curves"].values()):
        for n, run in enumerate(curve["runs"]):
            steps, values = zip(*run[metric]) if run.get(metric) else ((), ())
            axes.plot(steps, values, color=f"C{k}", linestyle=("-", "--", ":")[n % 3], marker=".", markersize=4,
                      label=curve["label"] if n == 0 else None)
            lowest, highest = min([lowest, *values]), max([highest, *values[len(values) // 4:]])
    if highest > 10 * lowest:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, highest * 1.05)
    axes.set_xlabel("training iterations")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="line styles: training seeds" if len(curve["runs"]) > 1 else None,
                title_fontsize="small")
    save(figure, path)


def plot_comparison(path: Path, record: dict[str, Any], metric: str, unit: str) -> None:
    """PNG: quality against evaluations, a line a sampler and a star a student; published numbers as small crosses."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in record["rows"]:
        if row["kind"] == "sampler":
            lines.setdefault(row["sampler"].partition(":")[0], []).append((row["nfe"], row[metric]))
        else:
            axes.plot(row["nfe"], row[metric], marker="*", markersize=14, linestyle="", label=row["method"])
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points)), marker="o", markersize=4, label=name)
    for k, row in enumerate(each for each in record["published"] if each.get(metric) is not None):
        axes.plot(row["nfe"], row[metric], marker="x", color="grey", linestyle="", label=None if k else "published")
        axes.annotate(row["method"].partition(" (")[0], (row["nfe"], row[metric]), fontsize=6, color="grey",
                      xytext=(3, 2), textcoords="offset points")
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("evaluations of the network")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise PidistillError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        plt.close(figure)
