"""Several verbs share these options and their help. typer reads the annotations; torch is imported by no line of this."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Preset = Annotated[str, typer.Option("--preset", "-p", help="Preset name, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set train.steps=100. Repeatable.")]
RunOut = Annotated[Path | None, typer.Option("--out", "-o", help="Where the result goes.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is in --out, if one is there: the same line "
                                                       "starts a job and continues it.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Model = Annotated[str, typer.Argument(help="A student or run folder, or a teacher spec such as bundled:digits.")]
Teacher = Annotated[str | None, typer.Option("--teacher", "-t", help="Teacher spec; default: the one the student had.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Numbers and ranges: 0-63,70.")]
Labels = Annotated[str | None, typer.Option("--labels", help="Classes, repeated over the seeds: 3, or 0-9. "
                                            "Default: each seed's own.")]
Net = Annotated[str | None, typer.Option("--net", help="The student's network, if it is of your own: python:MODULE:FACTORY, "
                                                       "which this imports.")]
Ema = Annotated[str | None, typer.Option("--ema", help="EMA rate of the student, of those that its run kept, or width:0.12 "
                                         "of any profile, from those that it stored. Default: the first rate.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")]
AutoBatch = Annotated[int | None, typer.Option("--batch", min=1, help="Images at a time; default: what memory holds.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of the teacher's sampler, where its name has none.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")]
PrecisionName = Annotated[str, typer.Option(help="Of the network's products: fp32, tf32, bf16 or fp16.")]
Metrics = Annotated[str | None, typer.Option(help="Of fid (fd), is, kid, pr, rms; comma-separated.")]
FeatureSpec = Annotated[str, typer.Option(help="Feature network: auto, none, digits, inception[:FILE] (FID), dinov2[:FILE], "
                                            "a TorchScript or torch.export file, or python:MODULE:FACTORY.")]
ReferenceSpec = Annotated[str | None, typer.Option(help="Statistics of the data (FILE.npz, EDM2's .pkl, one that EDM "
                                                    "published, such as cifar10-32x32), or images: a folder, .zip or "
                                                    ".npz.")]
Num = Annotated[int, typer.Option("--num", "--images", min=2, help="Number of images. (Behind accelerate launch and "
                                                                   "torchrun, which take --num for theirs: --images.)")]
FirstSeed = Annotated[int, typer.Option("--first-seed", min=0, max=10**18, help="Seeds run from here.")]
