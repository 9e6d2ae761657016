"""Numbers are written as people read them, with units and digits, in tables.

A table is a list of rows of text, whose first is the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pidistill.evaluation.results import Evaluation, Measurement, Repeats

UNITS = {"fid": "FID", "fd_dinov2": "FD-DINOv2", "fd": "FD %", "is": "IS", "kid": "KID x 1000", "precision": "precision",
         "recall": "recall", "trajectory_rmse": "rms to teacher"}
METRIC_FORMATS = {"fid": ".2f", "fd_dinov2": ".1f", "fd": ".2f", "is": ".2f", "kid": ".4g", "precision": ".3f",
                  "recall": ".3f", "trajectory_rmse": ".3f"}
FRECHET = ("fid", "fd_dinov2", "fd")  # the Frechet distance by its names in different features


def format_metric(key: str, value: float) -> str:
    """Write a metric's number for people, in the unit of `UNITS`."""
    return format(1000 * value if key == "kid" else value, METRIC_FORMATS[key])


def order_metrics(metrics: Iterable[Iterable[str]]) -> list[str]:
    """Sort the keys of several models' metrics into the order of `UNITS`, each once; keys without a unit are left out."""
    measured = {key for keys in metrics for key in keys}
    return [key for key in UNITS if key in measured]


def tabulate(evaluation: Evaluation) -> list[list[str]]:
    """Write a table of one row a model; the Frechet distance comes first, with its column also where none was measured."""
    metrics = order_metrics(model.metrics for model in evaluation.models.values())
    distances = [key for key in metrics if key in FRECHET] or ["fd"]
    keys = [*distances, *(key for key in metrics if key not in distances)]

    def write_row(name: str, model: Measurement) -> list[str]:
        numbers = (format_metric(key, model.metrics[key]) if key in model.metrics else "-" for key in keys)
        return [name, str(model.nfe), *numbers, f"{model.images_per_s:.0f}"]

    rows = [["", "evaluations", *(UNITS[key] for key in keys), "images/s"]]
    rows += [write_row(name, model) for name, model in evaluation.models.items()]
    if evaluation.speedup is not None:
        ratio = evaluation.models["teacher"].nfe / evaluation.models["student"].nfe
        rows.append(["ratio", f"{ratio:.0f}x fewer", *[""] * len(keys), f"{evaluation.speedup:.1f}x"])
    return rows


def tabulate_repeats(repeats: Repeats, seeds: Sequence[str]) -> list[list[str]]:
    """Write a table of every repeat, then minimum and mean, model by model. seeds: of each repeat, such as `0-49`."""
    minimum, mean = repeats.minimum, repeats.mean
    rows: dict[str, Measurement] = {}
    for model in mean.models:
        rows |= {f"{model}, seeds {span}": evaluation.models[model] for span, evaluation in zip(seeds, repeats.evaluations)}
        rows |= {f"{model}, minimum": minimum.models[model], f"{model}, mean": mean.models[model]}
    return tabulate(Evaluation(rows))
