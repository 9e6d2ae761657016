"""`pidistill export`: a student in a form that other programs read, measured against the student itself before it is kept.

A format is a function (source, folder, options) that writes its files and gives a runner, which draws with what was written
as a stranger would: (noise, labels) -> images in [-1, 1]. The images of the same noise are compared, and an export that
differs by more than its precision explains is not kept.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pidistill.core.errors import PidistillError, explain
from pidistill.core.profiles import Average
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.registry import build, list_members, suggest_choices
from pidistill.core.seeds import labels_of, noise
from pidistill.core.tensors import quantise
from pidistill.files.folders import check_free, write_folder
from pidistill.files.hub import PREFIX, check_repository, push_folder
from pidistill.jobs.export._card import write_card
from pidistill.jobs.export._source import Runner, Written, open_source
from pidistill.models.student import Student
from pidistill.nets.base import Own
from pidistill.nets.parts import native

BATCHES, FEW = (1, 2, 65), (1, 2, 3)  # images at a time when it is compared; of large images, fewer
LARGE_IMAGE = 2**14  # numbers of an image


class Bound(NamedTuple):
    """How far an export may be from the student: the largest difference and the r.m.s., of images in [-1, 1], and the share
    of pixels that are another number, which must be a neighbour's where `neighbours` says so."""

    largest: float
    rms: float
    share: float
    neighbours: bool


# float32: rounding in another order. float16 has 11 bits; the network's many roundings were measured (docs/export.md). int8
# has 8 bits for numbers that spread unevenly: what it does to images is stated, and has no bound but that of a wrong graph.
BOUNDS = {"fp32": Bound(1e-4, 1e-4, 1e-3, True), "fp16": Bound(0.1, 5e-3, 1.0, False), "bf16": Bound(0.5, 5e-2, 1.0, False),
          "int8": Bound(2.0, 0.3, 1.0, False)}


def export(spec: str, form: str, out: Path, *, ema: Average | None = None, net: Own | None = None, force: bool = False,
           command: str = "", push: str | None = None, options: dict[str, Any] | None = None) -> str:
    """Write a student in another form, with its `parity.json` beside it; gives a line on what was written.

    spec: of the student, a folder or a run.
    form: a format, as in `jobs/export`; - may stand for _.
    out: the folder, which is there in the end whole or not at all.
    ema, net: as `load_student` takes them.
    force: what is there is replaced.
    command: what the user typed, for the provenance.
    push: a repository of the Hugging Face hub, OWNER/NAME, that the folder is uploaded to.
    options: of the format.

    Raises PidistillError for a teacher, an option that the format does not have, and images that differ too much.
    """
    form = form.replace("-", "_")
    if form not in list_members("formats"):
        raise suggest_choices("format", form, [name.replace("_", "-") for name in list_members("formats")])
    check_free(out, force)
    source = open_source(spec, ema, net)
    options = options or {}
    if push:
        check_repository(push)
    parity: dict[str, Any] = {}

    def write(folder: Path) -> None:
        with native.switched_off():  # the kernels for this processor are no part of any file
            written: Written = build("formats", form, source, folder, **options)
            parity.update(measure_parity(source.student, written.run))
        parity["precision"] = options.get("precision", "fp32")
        check_parity(parity, form)
        record = {**source.provenance, "export": {"command": command, "commit": find_commit(), "versions": list_versions()}}
        for name, content in (("parity", parity), ("provenance", record)):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        place = push or out.name
        card = write_card(source, parity, written, f"{PREFIX}{push}" if push and written.library == "pidistill" else place)
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")

    write_folder(out, {}, {}, write)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    line = (f"{form.replace('_', '-')} in {out}, {size / 1e6:.2f} MB; {parity['images']} images differ from the student's "
            f"by at most {parity['largest_difference']:.2g}, {parity['pixels_that_differ']:.2%} of their pixels")
    return f"{line}; {push_folder(out, push, line)}" if push else line


def measure_parity(student: Student, run: Runner) -> dict[str, Any]:
    """Compare what a runner draws with the student's images of the same seeds and labels, in several sizes of batch.

    Gives numbers: the largest difference and r.m.s. of images in [-1, 1], the share of pixels of another uint8 number, and
    the largest difference of these.
    """
    batches = FEW if math.prod(student.image_shape) > LARGE_IMAGE else BATCHES
    ours, theirs, first = [], [], 0
    for batch in batches:
        seeds = range(first, first + batch)
        labels = labels_of(seeds, student.num_classes)
        try:
            images = run(noise(seeds, student.shape), labels)
        except PidistillError:
            raise
        except Exception as error:  # of a library that runs a graph
            raise PidistillError(explain(f"what was written does not run on {batch} images", error)) from error
        ours.append(student.sample(seeds, labels))
        if tuple(images.shape) != tuple(ours[-1].shape):
            raise PidistillError(f"what was written gives {tuple(images.shape)} for images {tuple(ours[-1].shape)}")
        theirs.append(images.float().cpu())
        first += batch
    x, y = torch.cat(ours).double(), torch.cat(theirs).double()
    pixels = (quantise(x).int() - quantise(y).int()).abs()
    return {"images": first, "seeds": f"0-{first - 1}", "batches": list(batches),
            "largest_difference": (x - y).abs().max().item(), "rms": (x - y).square().mean().sqrt().item(),
            "pixels_that_differ": (pixels > 0).double().mean().item(), "largest_pixel_difference": pixels.max().item()}


def check_parity(parity: dict[str, Any], form: str) -> None:
    """Refuse an export that is further from the student than its precision explains. Raises PidistillError."""
    bound = BOUNDS[parity["precision"]]
    far = not (parity["largest_difference"] <= bound.largest and parity["rms"] <= bound.rms
               and parity["pixels_that_differ"] <= bound.share)  # NaN is far
    if far or (bound.neighbours and parity["largest_pixel_difference"] > 1):
        raise PidistillError(
            f"the {form.replace('_', '-')} export is not the student: its images differ by up to "
            f"{parity['largest_difference']:.2g} ({bound.largest:g} may be), r.m.s. {parity['rms']:.2g} ({bound.rms:g}), "
            f"{parity['pixels_that_differ']:.2%} of the pixels ({bound.share:.2%}); nothing was kept")
