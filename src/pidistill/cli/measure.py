"""These verbs measure: evaluate, reference, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidistill.cli.options import (
    AutoBatch,
    BatchSize,
    Device,
    FeatureSpec,
    FirstSeed,
    Force,
    Metrics,
    Model,
    Net,
    Num,
    ReferenceSpec,
    Steps,
    Teacher,
)
from pidistill.cli.terminal import format_command_line, parse_rates, print_rows


def report(runs: Annotated[list[str], typer.Argument(help="A run's folder, or several, which are compared.")],
           out: Annotated[Path | None, typer.Option("--out", "-o", help="The page, x.html. Default: report.html in the "
                                                    "run's folder, or of several in the current one.")] = None,
           teacher: Teacher = None,
           data: Annotated[str | None, typer.Option(help="Images, as data= of a run names them: the nearest to the "
                                                         "student's are shown.")] = None,
           pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Whether student and teacher draw "
                                                  "some: trajectories, largest differences.")] = True,
           device: Device = "auto", net: Net = None, force: Force = False) -> None:
    """Show a run, or compare several, on one page of HTML that needs nothing but a browser."""
    from pidistill.jobs.report.write import report

    print(report(runs, out, teacher=teacher, data=data, pictures=pictures, device=device, force=force, net=net,
                 command=format_command_line()))


def evaluate(model: Model, teacher: Teacher = None, num: Num = 5000,
             repeats: Annotated[int, typer.Option(min=1, max=100, help="Disjoint sets of seeds, in turn; shows all, "
                                                                       "their minimum and mean.")] = 1,
             first_seed: FirstSeed = 0, batch: AutoBatch = None,
             ema: Annotated[str | None, typer.Option(help="EMA rates of the student, and widths of profiles, such as "
                                                     "0.999,width:0.12; one row each. Default: its run's first.")] = None,
             metrics: Metrics = None, features: FeatureSpec = "auto", reference: ReferenceSpec = None,
             sampler: Annotated[str, typer.Option(help="Sampler of the teacher: heun:18, ddim:50, ...")] = "heun",
             steps: Steps = 18, device: Device = "auto",
             checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Every checkpoint and EMA rate of a run, as a "
                                                                             "curve; goes on where it stopped.")] = False,
             net: Net = None, out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file.")] = None,
             force: Force = False) -> None:
    """Measure a student against its teacher (or a teacher alone): FID, IS, KID, distance to its solutions, images/s.

    Without --metrics: the Frechet distance, where a feature network is there, and the distance to the teacher's solutions.
    With --metrics, the teacher is drawn only if rms is among them or --teacher names it.
    """
    from pidistill.jobs.evaluate_run import Protocol, evaluate_checkpoints, evaluate_model

    protocol = Protocol(num=num, first_seed=first_seed, repeats=repeats, batch=batch, metrics=metrics, features=features,
                        reference=reference, device=device, command=format_command_line())
    if checkpoints:
        report = evaluate_checkpoints(Path(model), protocol, teacher=teacher, out=out, force=force)
    else:
        report = evaluate_model(model, protocol, teacher=teacher, rates=parse_rates(ema), sampler=sampler, steps=steps,
                                out=out, force=force, net=net)
    if report:
        print_rows(report.table)
        if report.note:
            print(report.note)


def reference(data: Annotated[str, typer.Argument(help="Images: a folder, a .zip (EDM's data sets), an .npz, or `digits`.")],
              out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")],
              features: Annotated[str, typer.Option(help="Feature network, as in evaluate.")] = "inception",
              keep: Annotated[int, typer.Option(min=0, help="Images whose features are kept, for KID, precision and "
                                                            "recall.")] = 10_000,
              batch: BatchSize = 250, device: Device = "auto", force: Force = False) -> None:
    """Make reference statistics of images, for evaluate and compare; the feature network's hash is in the file."""
    from pidistill.jobs.reference import measure_reference as job

    print(job(data, out, features=features, keep=keep, batch=batch, device=device, force=force))


def compare(methods: Annotated[list[str] | None, typer.Argument(metavar="[MORE]...", help="More samplers and students, as "
                                                                "behind --samplers A B.", show_default=False)] = None,
            teacher: Annotated[str, typer.Option("--teacher", "-t", help="Teacher spec KIND:REST, or a folder.")] = ...,  # type: ignore[assignment]
            students: Annotated[list[str] | None, typer.Option(help="Folders of students or runs. Repeatable; several may "
                                                                    "follow.")] = None,
            samplers: Annotated[list[str] | None, typer.Option(help="NAME:STEPS,STEPS of the teacher: euler:250 heun:18 "
                                                                    "ddim:10,50. Repeatable; several may follow.")] = None,
            metrics: Metrics = None, features: FeatureSpec = "auto", reference: ReferenceSpec = None, num: Num = 5000,
            first_seed: FirstSeed = 0, batch: AutoBatch = None,
            published: Annotated[str | None, typer.Option(help="Add the paper's rows: cifar10 or imagenet64.")] = None,
            device: Device = "auto", net: Net = None,
            out: Annotated[Path, typer.Option("--out", "-o", help="Folder; a comparison there goes on.")] = Path("compare"),
            ) -> None:
    """Compare samplers of a teacher and its students in one table, as the paper's Table 1; with a plot and a picture."""
    from pidistill.jobs.compare import compare as job

    paths = job(teacher, students or [], samplers or [], out, others=methods or [], metrics=metrics, features=features,
                reference=reference, num=num, first_seed=first_seed, batch=batch, published=published, device=device,
                command=format_command_line(), net=net)
    for path in paths:
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
    for path in paths:
        print(path)
