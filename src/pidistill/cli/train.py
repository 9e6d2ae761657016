"""These verbs train: distill, resume, train-teacher, reproduce."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pidistill.cli.options import Force, Overrides, Preset, Resume, RunOut
from pidistill.cli.terminal import add_out, format_command_line, print_distilled, print_facts, print_teacher

START = time.perf_counter()  # before torch is imported: what the user waits for counts


def distill(teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Spec KIND:REST, or a folder.")] = None,
            preset: Annotated[str | None, typer.Option("--preset", "-p", help="Preset name, or a YAML file.")] = None,
            override: Overrides = None, out: RunOut = None, force: Force = False, resume: Resume = False,
            dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would need, and stop.")] = False,
            gpus: Annotated[int, typer.Option(min=1, help="GPUs that a dry run reckons with.")] = 1,
            memory: Annotated[float, typer.Option(min=0.1, help="GB of each of them.")] = 80) -> None:
    """Train a one-step student; without arguments, of the bundled digits teacher. Ends with a table."""
    from pidistill.jobs import distill as job
    from pidistill.training.config import DistillConfig
    from pidistill.training.config_file import given_keys, load_config

    if preset is None:
        preset = job.default_preset("bundled:digits" if teacher is None else teacher)
    words = [] if teacher is None else [("teacher", teacher)]
    config = load_config(DistillConfig, preset, [*words, *add_out(override, out)])
    if dry_run:
        from pidistill.jobs.dry_run import dry_run as estimate

        print_facts(estimate(config, gpus, memory))
        return
    print_distilled(job.run_distillation(config, force=force, resume=resume, given=given_keys(override), began=START))


def resume(run: Annotated[Path, typer.Argument(help="The folder of an interrupted run.")], override: Overrides = None,
           step: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint to go on from; default: the newest whole "
                                                                "one. Later ones are set aside.")] = None) -> None:
    """Continue an interrupted run from its newest whole checkpoint; --set changes its settings from there on."""
    from pidistill.jobs import distill, train_teacher
    from pidistill.training.run_folder import trains_teacher

    if trains_teacher(run):
        print_teacher(train_teacher.resume_teacher_training(run, override or [], step, format_command_line()))
    else:
        print_distilled(distill.resume_distillation(run, override or [], step, START))


def train_teacher(preset: Preset = "digits", override: Overrides = None, out: RunOut = None, force: Force = False,
                  resume: Resume = False) -> None:
    """Train a diffusion model (EDM loss) that can teach."""
    from pidistill.jobs import train_teacher as job
    from pidistill.training.config import TeacherConfig
    from pidistill.training.config_file import given_keys, load_config

    config = load_config(TeacherConfig, preset, add_out(override, out))
    print_teacher(job.run_teacher_training(config, format_command_line(), force=force, resume=resume,
                                           given=given_keys(override)))


def reproduce(
        experiment: Annotated[str, typer.Argument(help="table1, table3, table7, figure3 to figure8, samples, "
                                                   "correction, or all.")],
        scale: Annotated[str, typer.Option(help="bundled: digits, minutes a run; paper: CIFAR-10, GPU-days.")] = "bundled",
        out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default runs/reproduce-SCALE.")] = None,
        seeds: Annotated[int | None, typer.Option(min=1, max=10, help="Training seeds of every run.")] = None,
        only: Annotated[list[str] | None, typer.Option("--only", help="Train the runs called so, such as joint-seed1 or "
                                                       "'*-seed0', without a report: for several programs at once. "
                                                       "Repeatable.")] = None,
        plan: Annotated[bool, typer.Option("--plan", help="Print what it would train and its cost, and stop.")] = False,
        override: Overrides = None) -> None:
    """Repeat an experiment of the paper, or compare corrections; a table, a plot and the raw numbers. Goes on where it
    stopped."""
    from pidistill.jobs import reproduce
    from pidistill.jobs.experiments import EXPERIMENTS

    folder = out or Path(f"runs/reproduce-{scale}")
    names = list(EXPERIMENTS) if experiment == "all" else [experiment]
    options: dict[str, Any] = {"seeds": seeds, "overrides": override or [], "only": only or []}
    print("\n".join(reproduce.estimate_cost(names, scale, folder, **options)))
    if not plan:
        for name in names:
            for path in reproduce.reproduce(name, scale, folder, **options):
                print(path)
