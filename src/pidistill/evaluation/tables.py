"""Numbers as people read them: units, digits, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNITS = {"fid": "FID", "fd_dinov2": "FD-DINOv2", "fd": "FD %", "is": "IS", "kid": "KID x 1000", "precision": "precision",
         "recall": "recall", "trajectory_rmse": "rms to teacher"}


FORMS = {"fid": ".2f", "fd_dinov2": ".1f", "fd": ".2f", "is": ".2f", "kid": ".4g", "precision": ".3f", "recall": ".3f",
         "trajectory_rmse": ".3f"}


def written(key: str, value: float) -> str:
    """A metric's number for people, in the unit of `UNITS`."""
    return format(1000 * value if key == "kid" else value, FORMS[key])


def table(results: dict[str, Any]) -> list[list[str]]:
    """Rows for people: a head, then one row a model."""
    rows = {name: row for name, row in results.items() if isinstance(row, dict) and "nfe" in row}
    measured = [key for key in UNITS if any(key in row for row in rows.values())]
    distances = [key for key in measured if key in ("fid", "fd_dinov2", "fd")] or ["fd"]
    keys = [*distances, *(key for key in measured if key not in distances)]
    lines = [["", "evaluations", *(UNITS[key] for key in keys), "images/s"]]
    lines += [[name, str(row["nfe"]), *(written(key, row[key]) if key in row else "-" for key in keys),
               f"{row['images_per_s']:.0f}"] for name, row in rows.items()]
    if "speedup" in results:
        lines.append(["ratio", f"{results['teacher']['nfe'] / results['student']['nfe']:.0f}x fewer", *[""] * len(keys),
                      f"{results['speedup']:.1f}x"])
    return lines


def repeats_table(summary: dict[str, Any], seeds: Sequence[str]) -> list[list[str]]:
    """Every repeat, then minimum and mean, model by model."""
    flat: dict[str, Any] = {}
    for model in summary["mean"]:
        flat |= {f"{model}, seeds {span}": result[model] for span, result in zip(seeds, summary["repeats"])}
        flat |= {f"{model}, {name}": summary[name][model] for name in ("minimum", "mean")}
    return table(flat)
