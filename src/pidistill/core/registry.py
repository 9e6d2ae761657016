"""Open families: folders in which one file is one member and the file's name is its command-line name."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pidistill.core.errors import PidistillError

HOMES = {"schemes": "objectives.schemes", "distances": "objectives.distances", "nets": "nets", "features": "nets.features",
         "teachers": "models.teachers", "samplers": "models.samplers", "objectives": "objectives",
         "metrics": "evaluation.metrics"}


def list_members(family: str) -> list[str]:
    """Members of a family, sorted: its files but `base.py` and those whose names begin with _."""
    package = importlib.import_module(f"pidistill.{HOMES[family]}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__)
                  if not module.ispkg and module.name != "base" and not module.name.startswith("_"))


def suggest_choices(what: str, name: str, known: list[str]) -> PidistillError:
    """The error for an unknown name: says which there are, and which one was probably meant."""
    close = get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return PidistillError(f"unknown {what} {name!r}{hint} (choices: {', '.join(known)})")


def find_member(family: str, name: str) -> Any:
    """The class or function of a member: the object in `FAMILY/NAME.py` named like the file, case and _ apart."""
    known = list_members(family)
    if name not in known:
        raise suggest_choices(family.removesuffix("s"), name, known)
    module = importlib.import_module(f"pidistill.{HOMES[family]}.{name}")
    if name in vars(module):  # a function; before a class that differs in case only (gaussian, Gaussian)
        return vars(module)[name]
    return next(value for key, value in vars(module).items() if key.lower() == name.replace("_", ""))


def build(family: str, name: str, *args: Any, **options: Any) -> Any:
    """Make a member; options that its signature does not have, or lacks, are one-line errors."""
    make = find_member(family, name)
    accepted = inspect.signature(make, eval_str=True).parameters
    for key in options:
        if key not in accepted:
            known = [k for k, p in accepted.items() if p.kind is p.KEYWORD_ONLY and k != "draw"]  # a sampler's noise
            raise suggest_choices(f"option of {family}/{name}", key, known)
    try:
        inspect.signature(make).bind(*args, **options)
    except TypeError as error:
        raise PidistillError(f"{family}/{name}: {error}") from None
    return make(*args, **{key: _validate(f"{family}/{name}", key, value, accepted[key].annotation)
                          for key, value in options.items()})


def _validate(where: str, key: str, value: Any, annotation: Any) -> Any:
    """The value in the annotated type, where there is one; options come from YAML."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise PidistillError(f"{where}: {key}: {error.errors()[0]['msg'].lower()}, got {value!r}") from None


def build_from_python(spec: str, what: str) -> Any:
    """The object MODULE:FACTORY(), the module imported from the current folder too: this runs the user's code."""
    module_name, _, factory = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), factory)):
        raise PidistillError(f"a python {what} is python:MODULE:FACTORY, got python:{spec}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PidistillError(f"python:{spec}: {error}") from None
    finally:
        sys.path.pop(0)
    if not hasattr(module, factory):
        raise PidistillError(f"python:{spec}: the module {module_name} has no {factory}")
    return getattr(module, factory)()


def build_from_config(family: str, part: str | dict[str, Any]) -> Any:
    """A member from its name, or from a mapping with `name` and its options."""
    options = {"name": part} if isinstance(part, str) else dict(part)
    if "name" not in options:
        raise PidistillError(f"{family}: a mapping needs `name`, got {part}")
    return build(family, options.pop("name"), **options)
