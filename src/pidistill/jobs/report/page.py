"""A report as one page of HTML: no file beside it, no request to anywhere, for telephones and screen readers too."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.evaluation.charts import Points, draw_chart
from pidistill.evaluation.tables import UNITS
from pidistill.files.folders import ASSETS
from pidistill.files.reading import read_json
from pidistill.jobs.report.drawn import Drawn
from pidistill.jobs.report.gather import RunFacts, Stage
from pidistill.objectives.base import BANDS
from pidistill.training.config_file import flatten_settings

PREVIEWS = 12        # pictures that the slider goes through, at most
WIDEST_PICTURE = 1000        # pixels of a picture
PICTURE_LIMIT = 150_000  # bytes; a larger PNG becomes a JPEG
CHARTS = {"fid": "FID", "fd": "FD %", "fd_dinov2": "FD-DINOv2", "trajectory_rmse": "r.m.s. to the teacher",
          "recall": "Recall", "precision": "Precision", "rms_to_teacher": "r.m.s. to the teacher",
          "spread": "Spread of the images", "alignment": "Alignment of the gradients"}


def make_page(runs: Sequence[RunFacts], drawn: Sequence[Drawn] = (), command: str = "") -> str:
    """Make the page of a run, or of several that are compared. drawn: more pictures. command: that made it, if any."""
    one = runs[0] if len(runs) == 1 else None
    title = one.name if one else f"{len(runs)} runs compared"
    sections = describe_run(one, drawn) if one else compare_runs(runs)
    style, script = ((ASSETS / "report" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body = "".join(f'<section aria-labelledby="s{k}"><h2 id="s{k}">{escape(name)}</h2>{content}</section>'
                   for k, (name, content) in enumerate(sections.items()) if content)
    made = f"<p class=made>Made by <code>{escape(command)}</code>.</p>" if command else ""
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
            f'<link rel="icon" href="data:,"><title>{escape(title)} - pidistill</title><style>{style}</style></head>'
            f"<body><main><h1>{escape(title)}</h1>{body}{made}</main><script>{script}</script></body></html>\n")


# One run ------------------------------------------------------------------------------------------------------------------


def describe_run(run: RunFacts, drawn: Sequence[Drawn]) -> dict[str, str]:
    """Describe a run: the sections of its page by their titles, in order; empty ones are left out."""
    return {"In short": summarise(run),
            "Teacher above student": show_file(run.picture, "Rows of the teacher's images, each above the student's for the "
                                                            "same noise.") if run.picture else "",
            "As it was trained": "".join(show_previews(stage) for stage in run.stages),
            "Curves": "".join(show_curves(stage, len(run.stages) > 1) for stage in run.stages),
            **{picture.title: show_picture(picture.png, picture.alt, picture.words) for picture in drawn},
            "What it cost": tabulate_costs(run), "How to use the student": explain_use(run),
            "Settings": show_settings(run), "Where it comes from": show_json(run.provenance) if run.provenance else ""}


def summarise(run: RunFacts) -> str:
    """Say in a line and a table how good the student is."""
    objective = run.config.get("objective", {})
    name = objective.get("name", "?") if isinstance(objective, dict) else objective
    steps = " + ".join(str(stage.records[-1]["step"]) for stage in run.stages if stage.records) or "0"
    state = "finished" if run.done else "not finished"
    words = (f"<p>A student of <code>{escape(str(run.config.get('teacher')))}</code>, objective "
             f"<code>{escape(str(name))}</code>: {steps} steps, {state}.</p>")
    rows = tabulate_results(run)
    return words + (make_table(*rows) if rows else "<p>Nothing was measured at its end yet.</p>")


def tabulate_results(run: RunFacts) -> tuple[list[str], list[list[str]]] | None:
    """Tabulate results.json; None where it holds none."""
    models = {name: row for name, row in run.results.items() if isinstance(row, dict) and "nfe" in row}
    if not models:
        return None
    keys = [key for key in UNITS if any(key in row for row in models.values())]
    head = ["", "network calls", *(UNITS[key] for key in keys), "images/s"]
    form = lambda value: format(value, ".3f") if isinstance(value, int | float) else "-"
    return head, [[name, str(row["nfe"]), *(form(row.get(key)) for key in keys), f"{row.get('images_per_s', 0):.0f}"]
                  for name, row in models.items()]


def show_previews(stage: Stage) -> str:
    """Show the previews of a stage with a slider; one alone without."""
    chosen = thin_out(stage.previews, PREVIEWS)
    if not chosen:
        return ""
    pictures = "".join(
        f'<img src="{encode_picture(path.read_bytes())}" alt="Teacher above student after {step} steps"'
        f'{"" if k == len(chosen) - 1 else " hidden"} data-step="{step}">' for k, (step, path) in enumerate(chosen))
    name = escape(f"Preview of {stage.name}, number of steps")
    slider = (f'<label>{escape(stage.name)}, after <output>{chosen[-1][0]}</output> steps '
              f'<input type="range" min="0" max="{len(chosen) - 1}" value="{len(chosen) - 1}" aria-label="{name}"></label>'
              if len(chosen) > 1 else f"<p>{escape(stage.name)}, after {chosen[-1][0]} steps</p>")
    return f'<div class="previews">{slider}{pictures}</div>'


def thin_out(items: Sequence[Any], most: int) -> list[Any]:
    """Take at most so many of a sequence, evenly, with its first and last."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def show_curves(stage: Stage, named: bool) -> str:
    """Show the charts of a stage: losses, metrics, speed; each with its numbers as a table for a screen reader."""
    prefix = f"{stage.name}: " if named else ""
    charts = [(f"{prefix}Loss", "", {key: stage.curve(key) for key in stage.list_losses()})]
    keys = stage.list_keys()
    for key, label in CHARTS.items():
        same = [name for name in keys if name == key or name.startswith(f"{key}@")]
        charts.append((f"{prefix}{label}", UNITS.get(key, ""), {name: stage.curve(name) for name in same}))
    for group, label in list_bands(keys).items():
        charts.append((f"{prefix}{label}", "", {key: stage.curve(key) for key in keys if key.startswith(f"{group}/")}))
    charts.append((f"{prefix}Speed", "images/s", {"images/s": stage.curve("images_per_s")}))
    return lay_out(show_chart(title, unit, lines) for title, unit, lines in charts)


def list_bands(keys: Sequence[str]) -> dict[str, str]:
    """List what metrics have by band of noise levels: keys without the band, each with its chart's title."""
    found = dict.fromkeys(key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] in BANDS)
    title = lambda group: ("Gap between the fake and the teacher, by noise level" if group == "gap" else
                           f"Loss by noise level{group.removeprefix('loss_by_t').replace('/', ': ')}")
    return {group: title(group) for group in found}


def show_chart(title: str, unit: str, lines: Mapping[str, Points]) -> str:
    """Show a chart, with its numbers folded away below it."""
    chart = draw_chart(lines, title, unit)
    if not chart:
        return ""
    rows = [[name, f"{x:g}", f"{y:.4g}"] for name, points in lines.items() for x, y in thin_out(points, 12)]
    return f"<div>{chart}<details><summary>Numbers</summary>{make_table(['', 'step', 'value'], rows)}</details></div>"


def lay_out(charts: Iterable[str]) -> str:
    """Lay charts out side by side, where there is room."""
    content = "".join(charts)
    return f'<div class="charts">{content}</div>' if content else ""


def tabulate_costs(run: RunFacts) -> str:
    """Tabulate what each stage took."""
    rows = []
    for stage in run.stages:
        last = stage.records[-1] if stage.records else {}
        speeds = sorted(value for _, value in stage.curve("images_per_s"))
        train = stage.config.get("train", {})
        pairs = run.folder / stage.name / "pairs" / "pairs.json"
        drawn = read_json(pairs).get("seconds") if pairs.is_file() else None
        rows.append([stage.name, f"{last.get('step', 0)} of {train.get('steps', '?')}", str(train.get("batch", "?")),
                     f"{last.get('seconds', 0):.0f}", f"{speeds[len(speeds) // 2]:.0f}" if speeds else "-",
                     f"{drawn:.0f}" if drawn is not None else "-"])
    return make_table(["stage", "steps", "batch", "seconds", "images/s, median", "seconds for pairs"], rows)


def explain_use(run: RunFacts) -> str:
    """Say how the student is used; of an unfinished run, how it goes on."""
    folder = escape(str(run.folder))
    if not run.done:
        return f"<pre>pidistill resume {folder}</pre>"
    return (f'<pre>import pidistill\n\nstudent = pidistill.load_student("{folder}")\n'
            f"images = student.sample(seeds=range(64))      # one network call each</pre>"
            f"<pre>pidistill sample {folder} --seeds 0-63 --out samples.png\n"
            f"pidistill export {folder} --format onnx --out exported</pre>")


def show_settings(run: RunFacts) -> str:
    """Show the configuration, folded away."""
    return f"<details><summary>config.yaml</summary>{show_json(run.config)}</details>"


def show_json(record: Any) -> str:
    return f"<pre>{escape(json.dumps(record, indent=1, default=str))}</pre>"


# Several runs -------------------------------------------------------------------------------------------------------------


def compare_runs(runs: Sequence[RunFacts]) -> dict[str, str]:
    """Compare runs: their results in one table, their curves in one chart each, their pictures below each other."""
    names = name_apart(runs)
    tables = [(name, tabulate_results(run)) for name, run in names.items()]
    keys = [title for title in ("network calls", *UNITS.values(), "images/s")
            if any(table and title in table[0] for _, table in tables)]
    rows = []
    for name, table in tables:
        students = [row for row in (table[1] if table else []) if row[0].startswith("student")]
        found = dict(zip(table[0], students[0] if "student" not in [row[0] for row in students] else
                         next(row for row in students if row[0] == "student"))) if table and students else {}
        rows.append([name, *(found.get(title, "-") for title in keys)])
    curves = []
    losses = {key: key.replace("loss", "Loss", 1) for run in runs for key in run.stages[-1].list_losses()}
    for key, label in (losses | CHARTS | {"images_per_s": "Speed"}).items():
        lines = {name: run.stages[-1].curve(key) for name, run in names.items()}
        curves.append(show_chart(label, UNITS.get(key, ""), lines))
    pictures = "".join(f"<h3>{escape(name)}</h3>{show_file(run.picture, f'Teacher above student of {name}')}"
                       for name, run in names.items() if run.picture)
    return {"Results": make_table(["run", *keys], rows), "Curves of the last stage": lay_out(curves),
            "Teacher above student": pictures,
            "Settings that differ": tabulate_differences(names)}


def name_apart(runs: Sequence[RunFacts]) -> dict[str, RunFacts]:
    """Name runs by their folders, and as much of the path as tells them apart. Raises PidistillError for one named twice."""
    parts = [run.folder.resolve().parts for run in runs]
    for k in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-k:]) for path in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, runs))
    raise PidistillError("a run is named twice")


def tabulate_differences(names: Mapping[str, RunFacts]) -> str:
    """Tabulate the settings in which runs differ, but for their folders."""
    flat = {name: flatten_settings(run.config) for name, run in names.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings if key != "out")
    rows = [[key, *(str(settings.get(key, "-")) for settings in flat.values())] for key in keys
            if len({str(settings.get(key, "-")) for settings in flat.values()}) > 1]
    return make_table(["setting", *names], rows) if rows else "<p>They have the same settings.</p>"


# Parts --------------------------------------------------------------------------------------------------------------------


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table, which scrolls by itself where it is wider than the screen."""
    cells = lambda row: f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def show_file(path: Path, alt: str) -> str:
    """Show a picture's file."""
    return show_picture(path.read_bytes(), alt)


def show_picture(png: bytes, alt: str, words: str = "") -> str:
    """Show a picture in the page itself, with words below it."""
    caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    return f'<figure><img src="{encode_picture(png)}" alt="{escape(alt)}">{caption}</figure>'


def encode_picture(png: bytes) -> str:
    """Encode a picture as a data: address; a large one is made smaller, as a JPEG."""
    kind = "png"
    if len(png) > PICTURE_LIMIT:
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        picture.thumbnail((WIDEST_PICTURE, 3 * WIDEST_PICTURE))
        content = io.BytesIO()
        picture.save(content, format="JPEG", quality=80)
        png, kind = content.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(png).decode()}"
