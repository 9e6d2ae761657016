"""The documentation's code blocks and commands: read from its pages, and run in a folder with what they speak of.

Commands run as printed, in this process, but smaller: with fewer steps and images (`make_smaller`). Those that would take
hours, many GPUs or a network (`names_large`) stop where their settings have been read (`stop_at_work`). Programs other than
ours are not started; what is given to them is checked (`check_foreign`).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = {"text", "bash"}  # what a program prints, and scripts for others: not run


class Block(NamedTuple):
    """A code block: its language, its text, and the name of the file that it is, if its first line says so."""

    language: str
    text: str
    file: str | None


def read_blocks(page: Path) -> list[Block]:
    """Read a page's code blocks, in their order. Each has a language."""
    blocks = []
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        named = re.match(r"# (\w+\.py)\n", text)
        blocks.append(Block(language, text, named.group(1) if named and language == "python" else None))
    return blocks


def split_commands(text: str) -> list[list[str]]:
    """Split a block of shell into commands, without comments."""
    whole = re.sub(r"\\\n\s*", " ", text)
    return [words for line in whole.splitlines() if (words := shlex.split(line, comments=True))]


SMALLER = {
    "distill": ["train.steps=4", "train.batch=4", "evaluate.num=8", "preview.seeds=0-1", "pairs.num=8",
                "pairs.sampler=heun:2", "profiles.every=1"],
    "train-teacher": ["train.steps=2", "train.batch=4", "preview.seeds=0-1"],
}
REPLACED = {"inception": "digits",
            "student.net=song_unet": "student.net={name: song_unet, model_channels: 8, num_blocks: 1}"}
STAGES = ["objective.first.train.steps=2", "objective.first.train.batch=4"]
LARGE = ("cifar10", "imagenet64", "OWNER/", "hf:", "checkpoint.pt")


def names_large(words: Sequence[str]) -> bool:
    """Tell whether a command wants a large network, or one that lies elsewhere."""
    return (words[0] == "distill" and any(word in part for word in LARGE for part in words)) or \
        (words[0] == "compare" and "cifar10-32x32" in " ".join(words))


def make_smaller(words: list[str]) -> list[str]:
    """Give the words of a `pidistill` command for a run of seconds."""
    verb, words = words[0], [REPLACED.get(word, word) for word in words]
    if verb == "reference":
        words += ["--features", "digits"]
    for flag, most in (("--num", 20 if verb == "pairs" else 8), ("--repeats", 2)):
        if flag in words:
            at = words.index(flag) + 1
            words[at] = str(min(int(words[at]), most))
    if verb == "reproduce" and "--plan" not in words:
        words.append("--plan")
    if "--dry-run" in words:
        return words
    settings = SMALLER.get(verb, []) + (STAGES if "corrected" in " ".join(words) and "--preset" in words else [])
    return words + [part for setting in settings for part in ("--set", setting)]


def start_smaller(start: Callable[..., Any], *args: Any, overrides: dict[str, Any] | None = None, **options: Any) -> Any:
    """Start a run from Python, by `start`, with fewer steps, samples and images."""
    values = {key: value for key, value in (overrides or {}).items() if key not in ("train", "pairs", "evaluate")}
    small = {"train.steps": 4, "train.batch": 4, "evaluate.num": 8, "preview.seeds": "0-1"}
    return start(*args, overrides=values | small | ({"pairs.num": 8} if "pairs.num" in values else {}), **options)


def find_out(words: Sequence[str]) -> Path | None:
    """Find the folder that a `distill` command writes into, where it says so or its preset does."""
    if "--out" in words:
        return Path(words[words.index("--out") + 1])
    return Path("runs", words[words.index("--preset") + 1].replace("_", "-")) if "--preset" in words else None


JOBS = {"distill": ("pidistill.jobs.distill", "run_distillation"), "compare": ("pidistill.jobs.compare", "compare"),
        "dry-run": ("pidistill.jobs.dry_run", "dry_run")}


def stop_at_work(monkeypatch) -> None:
    """Let jobs end as soon as they are called rightly."""
    for module, name in JOBS.values():
        job = getattr(importlib.import_module(module), name)

        def stand_in(*args, _job=job, **options):
            inspect.signature(_job).bind(*args, **options)
            raise SystemExit(0)

        monkeypatch.setattr(f"{module}.{name}", stand_in)


class Parsed(Exception):
    """The arguments of a script were understood."""


def check_foreign(words: Sequence[str], monkeypatch, run_ours: Callable[[list[str]], None]) -> None:
    """Check a command that starts something other than `pidistill`.

    run_ours: runs the words after `pidistill`, of a launcher's command.
    """
    program, rest = words[0], list(words[1:])
    if program in ("accelerate", "torchrun"):
        if program == "accelerate":
            from accelerate.commands.launch import launch_command_parser as make_parser
            assert rest.pop(0) == "launch"
        else:
            from torch.distributed.run import get_args_parser as make_parser
        at = rest.index("-m")
        parsed = make_parser().parse_args(rest)
        assert parsed.module and rest[at + 1] == "pidistill.cli"
        run_ours(rest[at + 2:])
    elif program == "pip":
        extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        for word in rest:
            named = re.fullmatch(r"(?:pidistill|\.)\[(.*)\]", word)
            assert rest[0] == "install" and (not named or {*named.group(1).split(",")} <= extras), word
    elif program == "bash":
        assert (ROOT / rest[0]).is_file()
    elif rest[0] == "-m":
        with monkeypatch.context() as patch:
            plain = argparse.ArgumentParser.parse_args

            def parse(self, args=None, namespace=None):
                plain(self, args, namespace)
                raise Parsed

            patch.setattr(argparse.ArgumentParser, "parse_args", parse)
            patch.setattr("sys.argv", rest[1:])
            try:
                importlib.import_module(rest[1]).main()
            except Parsed:
                return
            raise AssertionError(f"{words} takes no arguments")
    else:
        assert program == "python" and (ROOT / rest[0]).is_file(), words
