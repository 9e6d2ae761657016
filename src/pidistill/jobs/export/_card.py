"""The model card of an export, README.md: what it is, how it is used, how good it is, and whose licence it is under."""

from __future__ import annotations

import json
import re
from typing import Any

from pidistill.core.errors import to_line
from pidistill.jobs.export._source import Source, Written

METRICS = {"fid": "FID", "fd": "FD %", "inception_score": "Inception Score",
           "trajectory_rmse": "r.m.s. to the teacher's solution", "precision": "precision", "recall": "recall"}


def write_card(source: Source, parity: dict[str, Any], written: Written, place: str) -> str:
    """Write the card's text.

    parity: what was measured of the export. written: by its format.
    place: what the example loads, such as hf:OWNER/NAME or the folder.
    """
    student, provenance = source.student, source.provenance
    shape = (16, *student.image_shape)
    kind = f" in {student.num_classes} classes" if student.num_classes else ""
    names = {"place": place, "shape": shape, "noise_shape": (16, *student.shape), "classes": max(student.num_classes, 1),
             "labels": f", torch.arange(16) % {student.num_classes}" if student.num_classes else ""}
    licence = to_line(str(provenance.get("teacher_licence", "unknown")))
    head = {"library_name": written.library, "pipeline_tag": "unconditional-image-generation", "license": "other",
            "license_name": "as-the-teacher", "tags": ["pidistill", "one-step", "distillation"]}
    if match := re.fullmatch(r"diffusers:([\w.-]+/[\w.-]+)", str(provenance.get("teacher", ""))):
        head["base_model"] = match[1]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "",
             f"# {to_line(source.name)}: one-step student", "",
             f"It draws an image of {' x '.join(map(str, student.image_shape))} (channels, height, width){kind}, with one "
             f"call of its network. Teacher: `{to_line(str(provenance.get('teacher', 'unknown')))}`. Trained with pidistill "
             f"{provenance.get('versions', {}).get('pidistill', '')}, {provenance.get('steps', '?')} steps, seed "
             f"{provenance.get('seed', '?')}, commit {str(provenance.get('commit', 'unknown'))[:12]}.", "",
             "## Use", "", "```python", written.usage.format(**names).strip(), "```", "",
             "## Measured", "", *describe_results(source.results), "",
             f"This export: {parity['images']} images (seeds {parity['seeds']}) differ from the student's by at most "
             f"{parity['largest_difference']:.2g}, r.m.s. {parity['rms']:.2g}; {parity['pixels_that_differ']:.3%} "
             "of their uint8 pixels are another number (`parity.json`).", "",
             "## Licence", "", f"The teacher's, which a student carries on: {licence}.", ""]
    return "\n".join(lines)


def describe_results(results: dict[str, Any]) -> list[str]:
    """Describe what was measured at the end of the run (results.json), as a table with seeds and counts."""
    rows = [(name, results.get(name)) for name in ("teacher", "student")]
    keys = [key for key in METRICS if any(isinstance(row, dict) and key in row for _, row in rows)]
    if not keys:
        return ["Nothing was measured at the end of the run."]
    form = lambda value: format(value, ".3f") if isinstance(value, int | float) else "-"
    lines = [f"| | network calls | {' | '.join(METRICS[key] for key in keys)} |", "|---" * (2 + len(keys)) + "|"]
    lines += [f"| {name} | {row.get('nfe', '-')} | {' | '.join(form(row.get(key)) for key in keys)} |"
              for name, row in rows if isinstance(row, dict)]
    student = results.get("student") or {}
    return [*lines, "", to_line(f"Images of the seeds {student.get('seeds', '?')}, features "
                                f"`{student.get('features', '?')}`, reference `{student.get('reference', '?')}`.")]
