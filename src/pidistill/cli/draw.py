"""These verbs draw: sample, trajectory, pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidistill.cli.options import (
    AutoBatch,
    Device,
    Ema,
    Force,
    Labels,
    Model,
    Net,
    Out,
    PrecisionName,
    Seeds,
    Teacher,
)
from pidistill.cli.terminal import parse_rate


def sample(model: Model, seeds: Seeds = "0-63", labels: Labels = None, ema: Ema = None, out: Out = Path("samples.png"),
           columns: Annotated[int | None, typer.Option(min=1, help="Columns of the grid.")] = None,
           batch: AutoBatch = None,
           sampler: Annotated[str, typer.Option(help="Sampler of a teacher: heun:18, ddim,eta=1:50, deis3:10.")] = "heun",
           steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps: of a teacher's sampler 18, of a student "
                                                     "1, of those that draw in several.")] = None,
           gamma: Annotated[float | None, typer.Option(min=0, max=1, help="Of a student's several steps: how much of the "
                                                       "noise between them is new.")] = None,
           device: Device = "auto", precision: PrecisionName = "fp32",
           compile: Annotated[bool, typer.Option("--compile", help="Compile the network first: a minute, for many images.")
                              ] = False, net: Net = None, force: Force = False) -> None:
    """Draw images: a grid (x.png), arrays (x.npz) or a folder of PNGs (any other name)."""
    from pidistill.jobs.sample import sample_spec

    print(sample_spec(model, out, seeds, labels, ema=parse_rate(ema), columns=columns, batch=batch, sampler=sampler,
                      steps=steps, gamma=gamma, device=device, precision=precision, compile=compile, force=force, net=net))


def trajectory(student: Model, teacher: Teacher = None, seeds: Seeds = "0-3", labels: Labels = None, ema: Ema = None,
               columns: Annotated[int, typer.Option(min=2, max=100, help="Times from T to eps.")] = 10,
               out: Out = Path("trajectory.png"), device: Device = "auto", net: Net = None,
               force: Force = False) -> None:
    """Draw the student's states from T to eps above the teacher's, for the same noise (the paper's Figure 8).

    --out trajectory.webp (or .gif) animates them, from noise to image.
    """
    from pidistill.jobs.trajectory import draw_trajectory_of_spec

    print(draw_trajectory_of_spec(student, out, seeds, labels, teacher=teacher, ema=parse_rate(ema), columns=columns,
                                  device=device, force=force, net=net))


def demo(student: Annotated[str | None, typer.Argument(help="A student or run folder, or hf:OWNER/NAME. Default: the "
                                                            "bundled one.")] = None,
         teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Teacher spec; default: the one the student "
                                                     "had; none: the student alone.")] = None,
         host: Annotated[str, typer.Option(help="Where the page is served; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
         port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.")] = None,
         browser: Annotated[bool, typer.Option("--browser", help="Open it in a browser.")] = False,
         ema: Ema = None, net: Net = None, device: Device = "auto") -> None:
    """Serve a page on this machine that draws: seeds, classes, trajectories, one step against many, interpolation."""
    from pidistill.jobs.demo.page import run_demo

    run_demo(student, teacher=teacher, host=host, port=port, ema=parse_rate(ema), net=net, device=device, browser=browser)


def pairs(teacher: Annotated[str, typer.Option("--teacher", "-t", help="Spec KIND:REST, or a folder.")] = "bundled:digits",
          num: Annotated[int, typer.Option("--num", "--images", min=2, max=10**8, help="Number of pairs. (Behind accelerate "
                                           "launch and torchrun, which take --num for theirs: --images.)")] = 5000,
          sampler: Annotated[str, typer.Option(help="Sampler of the ODE, without noise: heun:18, deis3:10.")] = "heun:18",
          trajectory: Annotated[int | None, typer.Option(min=2, help="Keep so many of the sampler's states, the solution "
                                                                     "among them. Default: the solution alone.")] = None,
          seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the pairs; no seed of images is one.")] = 0,
          shard: Annotated[int | None, typer.Option(min=1, help="Pairs of a file; default: 250 to 1000.")] = None,
          half: Annotated[bool, typer.Option("--half", help="Store float16, half of the disk; says its error.")] = False,
          batch: AutoBatch = None, out: Out = Path("pairs"), device: Device = "auto", force: Force = False) -> None:
    """Draw pairs of noise and the teacher's solution for it; the same line goes on with what is there.

    Several processes (accelerate launch) share the work and write the same files as one.
    """
    from pidistill.jobs.pairs import draw_pairs_of_spec

    line = draw_pairs_of_spec(teacher, out, num, sampler=sampler, trajectory=trajectory, seed=seed, shard=shard, half=half,
                              batch=batch, device=device, force=force)
    if line:
        print(line)
