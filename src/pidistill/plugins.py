"""Open families: folders in which one file is one member and the file's name is its command-line name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from difflib import get_close_matches
from typing import Any

from pidistill.errors import PidistillError

FAMILIES = ("schemes", "distances", "nets", "teachers", "samplers", "objectives", "metrics")


def names(family: str) -> list[str]:
    """Members of a family, sorted."""
    package = importlib.import_module(f"pidistill.{family}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def choices(what: str, name: str, known: list[str]) -> PidistillError:
    """The error for an unknown name: says which there are, and which one was probably meant."""
    close = get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return PidistillError(f"unknown {what} {name!r}{hint} (choices: {', '.join(known)})")


def member(family: str, name: str) -> Any:
    """The class or function of a member: the object in `FAMILY/NAME.py` named like the file, case and _ apart."""
    known = names(family)
    if name not in known:
        raise choices(family.removesuffix("s"), name, known)
    module = importlib.import_module(f"pidistill.{family}.{name}")
    return next(value for key, value in vars(module).items() if key.lower() == name.replace("_", "") or key == name)


def build(family: str, name: str, *args: Any, **options: Any) -> Any:
    """Make a member; options that its signature does not have, or lacks, are one-line errors."""
    make = member(family, name)
    accepted = inspect.signature(make).parameters
    for key in options:
        if key not in accepted:
            known = [k for k, p in accepted.items() if p.kind is p.KEYWORD_ONLY]
            raise choices(f"option of {family}/{name}", key, known)
    try:
        inspect.signature(make).bind(*args, **options)
    except TypeError as error:
        raise PidistillError(f"{family}/{name}: {error}") from None
    return make(*args, **options)
