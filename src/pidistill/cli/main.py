"""The command line: parse, call one job, print. torch is imported only once a verb runs."""

from __future__ import annotations

import atexit
import functools
import gc
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from pidistill.cli import draw, measure, models, train
from pidistill.cli.terminal import show_traceback
from pidistill.core.errors import ForeignError, PidistillError, words_of


def end_on_interrupt(verb: Callable[..., None]) -> Callable[..., None]:
    """Let Ctrl-C in a verb print what the job has to say about it, and end the program; typer would drop the words."""
    @functools.wraps(verb)
    def run(*args: Any, **options: Any) -> None:
        try:
            verb(*args, **options)
        except KeyboardInterrupt as stopped:
            print(stopped, end="", file=sys.stderr, flush=True)
            raise SystemExit(130) from None

    return run


app = typer.Typer(name="pidistill", add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
                  help="Distil a diffusion model into a one-step generator with Physics Informed Distillation.")
for verb in (train.distill, train.resume, draw.sample, draw.trajectory, draw.demo, draw.pairs, measure.evaluate,
             measure.reference, measure.compare, measure.report, train.reproduce, train.train_teacher, models.inspect,
             models.convert, models.export):
    app.command(verb.__name__.replace("_", "-"))(end_on_interrupt(verb))


@app.callback(invoke_without_command=True)
def options(context: typer.Context,
            version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import pidistill

        print(pidistill.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


def fail(message: str) -> NoReturn:
    """Print one line and end the process with exit code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        os._exit(2)  # the usual end would have NCCL wait for processes that are gone
    raise SystemExit(2)


def main() -> Any:
    """Run the verb that the program's arguments name; every mistake of the user ends in one line and exit code 2.

    So does what code that the user brought raises, such as a teacher's. PIDISTILL_TRACEBACK=1 shows where it was raised.
    """
    # torch makes a million objects while it is imported, none of them rubbish: looking at them now and again, and once more
    # at the end, takes a sixth of the time of a short `sample`.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is escaped, and ends nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = app(sys.argv[1:], standalone_mode=False)
    except PidistillError as error:
        shown = show_traceback(error)
        hint = isinstance(error, ForeignError) and error.__cause__ is not None and not shown
        fail(f"{error} (PIDISTILL_TRACEBACK=1 shows where)" if hint else str(error))
    except KeyboardInterrupt:  # before the verb began
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's usage errors, whose home module differs between versions
            fail(f"{error.format_message()} (see pidistill --help)")
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported for its sake
            show_traceback(error)
            fail(f"the memory does not hold it ({words_of(error)}); set --batch, or in a training train.microbatch=auto")
        raise
    sys.exit(result if isinstance(result, int) else 0)
