"""These verbs say what a model is, and write it in another form: inspect, convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pidistill.cli.options import Ema, Force, Net
from pidistill.cli.terminal import format_command_line, parse_rate, print_facts, show_traceback
from pidistill.core.errors import PidistillError


def inspect(model: Annotated[str, typer.Argument(help="Teacher spec, or folder or file of a teacher, student or run.")],
            check: Annotated[bool, typer.Option("--check", help="Ask a teacher whether it denoises, and say what is "
                                                                "wrong; exit code 1 if something is.")] = False) -> None:
    """Say what a teacher, a student or a run is; with --check, whether a teacher can teach."""
    if check:
        from pidistill.jobs.check import check_teacher
        from pidistill.models.teachers.base import load_teacher

        checks = check_teacher(load_teacher(model))
        for answer in checks:
            print(f"{answer.verdict:<8} {answer.name:<12} {answer.says}", flush=True)
            if answer.error:
                show_traceback(answer.error)
        raise typer.Exit(1 if any(answer.verdict == "wrong" for answer in checks) else 0)
    from pidistill.jobs.inspect_files import describe_stored

    facts = describe_stored(model)
    if facts is not None:
        return print_facts(facts)
    from pidistill.jobs.inspect import describe  # imports torch, which what is stored does not need

    facts = describe(model)
    failure: PidistillError | None = facts.pop("failure", None)
    print_facts(facts)
    if failure:
        sys.stdout.flush()
        raise failure


def export(student: Annotated[str, typer.Argument(help="A student or run folder, or hf:OWNER/NAME.")],
           form: Annotated[str, typer.Option("--format", "-f", help="safetensors, diffusers, onnx, torch-export or hub.")],
           out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
           precision: Annotated[str | None, typer.Option(help="Of the weights: fp32, fp16, and bf16 (safetensors) or int8 "
                                                              "(onnx).")] = None,
           pixels: Annotated[bool, typer.Option("--pixels", help="A second output, the images as uint8 (onnx, torch-export)."
                                                )] = False,
           push: Annotated[str | None, typer.Option(help="Upload the folder to OWNER/NAME of the Hugging Face hub.")] = None,
           ema: Ema = None, net: Net = None, force: Force = False) -> None:
    """Write a student for other programs, measured against itself first (parity.json)."""
    from pidistill.jobs.export.base import export

    options = {"precision": precision, "pixels": pixels or None}
    print(export(student, form, out, ema=parse_rate(ema), net=net, force=force, command=format_command_line(), push=push,
                 options={key: value for key, value in options.items() if value is not None}))


def convert(teacher: Annotated[str, typer.Argument(help="Teacher spec KIND:REST, or a folder.")],
            out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
            dtype: Annotated[str, typer.Option(help="Of the weights in the file: fp32, fp16 or bf16.")] = "fp32",
            force: Force = False) -> None:
    """Write a teacher as config.json and safetensors, with the source's SHA-256; the folder is a teacher spec then."""
    from pidistill.files.folders import check_free
    from pidistill.jobs.convert import convert

    check_free(out, force)
    print(f"teacher in {convert(teacher, out, dtype=dtype, command=format_command_line())}")
