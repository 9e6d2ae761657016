"""The command line: parse, call one verb, print. torch is imported only once a verb runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pidistill.errors import PidistillError

app = typer.Typer(name="pidistill", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
                  help="Distil a diffusion model into a one-step generator with Physics Informed Distillation.")

Preset = Annotated[str, typer.Option("--preset", "-p", help="Preset name, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set train.steps=100. Repeatable.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where the result goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import pidistill

        print(pidistill.__version__)
        raise typer.Exit


@app.command("train-teacher")
def train_teacher(preset: Preset = "digits", override: Overrides = None, out: Out = None, force: Force = False) -> None:
    """Train a diffusion model (EDM loss) that can teach."""
    from pidistill import runs, train_teacher
    from pidistill.config import TeacherConfig, load_config

    config = load_config(TeacherConfig, preset, with_out(override, out))
    train_teacher.train_teacher(config, runs.claim(config, force), command_line())


def with_out(override: list[str] | None, out: Path | None) -> list[str]:
    return [*(override or []), *([f"out={str(out)!r}"] if out else [])]


def command_line() -> str:
    return shlex.join(["pidistill", *sys.argv[1:]])


def fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


def main() -> Any:
    try:
        result = app(standalone_mode=False)
    except PidistillError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's usage errors, whose home module differs between versions
            fail(f"{error.format_message()} (see pidistill --help)")
        raise
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
