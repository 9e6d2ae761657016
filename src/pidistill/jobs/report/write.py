"""`pidistill report RUN` writes report.html; a run writes one too at every preview, of what its folder holds by then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.processes import choose_device
from pidistill.files.folders import check_free, write_text
from pidistill.jobs.report.drawn import Drawn, draw_all
from pidistill.jobs.report.gather import gather_run
from pidistill.jobs.report.page import make_page
from pidistill.jobs.stages import is_stage
from pidistill.models.load import load_pair
from pidistill.nets.base import Own

NAME = "report.html"


def report(runs: Sequence[str], out: Path | None = None, *, teacher: str | None = None, data: str | None = None,
           pictures: bool = True, device: str = "auto", force: bool = False, net: Own | None = None,
           command: str = "") -> str:
    """Write the page of a run, or of several that are compared; gives a line on it.

    runs: folders.
    out: the file; by default report.html in the run's folder, which is replaced, or of several in the current folder.
    teacher: another than the one that the student was made from.
    data: images that the student's are compared with, as `data` of a run names them.
    pictures: whether teacher and student draw some, of a single finished run.
    device: as `choose_device` takes it. net: of the student, as `load_student` takes it.
    force: what is there is replaced.
    command: what the user typed, for the page.

    Raises PidistillError for what is no run.
    """
    if out is not None and out.suffix != ".html":
        raise PidistillError(f"--out must end in .html, got {out}")
    facts = [gather_run(Path(run)) for run in runs]
    place = out or (facts[0].folder / NAME if len(facts) == 1 else Path(NAME))
    if out or len(facts) > 1:
        check_free(place, force)
    drawn: list[Drawn] = []
    if len(facts) == 1 and facts[0].done and pictures:
        target = choose_device(device)
        student, denoiser = load_pair(runs[0], teacher, net=net)
        drawn = draw_all(student.to(target), denoiser.to(target), data)
    elif data:
        raise PidistillError("--data is of a single finished run, whose student's images it is compared with")
    write_text(place, make_page(facts, drawn, command))
    return f"{place}, {place.stat().st_size / 1e6:.2f} MB"


def refresh_report(folder: Path) -> None:
    """Write a run's page of what its folder holds: no network is asked. A stage's is its distillation's.

    What cannot be read, such as a file that was edited meanwhile, is said, and ends no run.
    """
    run = folder.parent if is_stage(folder) else folder
    if not (run / "config.yaml").is_file():
        return
    try:
        page = make_page([gather_run(run)])
    except PidistillError as error:
        console.print(f"no page of the run: {error}", soft_wrap=True)
        return
    write_text(run / NAME, page)
