"""An open family is a folder in which one file is one member; the file's name is the member's command-line name."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from difflib import get_close_matches
from operator import attrgetter
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pidistill.core.errors import ForeignError, PidistillError, explain

# Families whose members users may bring as `python:MODULE:NAME`: those that are named by a user's own settings alone, and by
# no file that comes with weights.
OPEN_TO_PYTHON = ("schemes", "distances", "samplers", "objectives")
HOMES = {"schemes": "objectives.schemes", "distances": "objectives.distances", "nets": "nets", "features": "nets.features",
         "teachers": "models.teachers", "samplers": "models.samplers", "objectives": "objectives",
         "metrics": "evaluation.metrics", "formats": "jobs.export"}


def list_members(family: str) -> list[str]:
    """List the members of a family, sorted: its files but `base.py` and those whose names begin with _."""
    package = importlib.import_module(f"pidistill.{HOMES[family]}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__)
                  if not module.ispkg and module.name != "base" and not module.name.startswith("_"))


def suggest_choices(what: str, name: str, known: list[str]) -> PidistillError:
    """Make the error for an unknown name: it lists the known ones, and suggests the one that was probably meant.

    what: what the name stands for, such as `distance`.
    name: the unknown name.
    known: the names that there are.
    """
    nearest = get_close_matches(name, known, 1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return PidistillError(f"unknown {what} {name!r}{hint} (choices: {', '.join(known)})")


def find_member(family: str, name: str) -> Any:
    """Find the class or function of a member: the object in `FAMILY/NAME.py` that is named like the file, case and _ apart.

    `python:MODULE:NAME` imports the user's own, from the current folder too. Raises PidistillError, with the family's
    members, if the name is none of theirs.
    """
    if name.startswith("python:") and family in OPEN_TO_PYTHON:
        member = import_from_python(name.removeprefix("python:"), family.removesuffix("s"))
        if not callable(member):
            raise PidistillError(f"{name} is no class and no function")
        return member
    known = list_members(family)
    if name not in known:
        raise suggest_choices(family.removesuffix("s"), name, known)
    module = importlib.import_module(f"pidistill.{HOMES[family]}.{name}")
    if name in vars(module):  # a function; before a class that differs in case only (gaussian, Gaussian)
        return vars(module)[name]
    return next(value for key, value in vars(module).items() if key.lower() == name.replace("_", ""))


def build(family: str, name: str, *args: Any, **options: Any) -> Any:
    """Make a member of a family by calling its class or function.

    Raises PidistillError for an option that the member does not know, one that it requires, or a value of another type.

    family: the family's name, such as `distances`.
    name: the member's name.
    args: positional arguments of the member.
    options: keyword arguments of the member, as they come from YAML.
    """
    make = find_member(family, name)
    try:
        parameters = inspect.signature(make, eval_str=True).parameters
    except NameError as error:  # an annotation that is imported for type checkers alone
        raise PidistillError(f"{family}/{name}: the type {error.name!r} of an argument is not there when it runs; import it "
                             "outside of TYPE_CHECKING") from None
    for key in options:
        if key not in parameters:
            known = [k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY and k != "draw"]  # a sampler's noise
            raise suggest_choices(f"option of {family}/{name}", key, known)
    try:
        inspect.signature(make).bind(*args, **options)
    except TypeError as error:
        raise PidistillError(f"{family}/{name}: {error}") from None
    values = {key: _validate(f"{family}/{name}", key, value, parameters[key].annotation) for key, value in options.items()}
    try:
        return make(*args, **values)
    except (Exception, SystemExit) as error:
        if isinstance(error, PidistillError) or not name.startswith("python:"):
            raise
        raise ForeignError(explain(f"the {family.removesuffix('s')} {name} cannot be made", error)) from error


def _validate(where: str, key: str, value: Any, annotation: Any) -> Any:
    """Convert the value to the annotated type, where there is one; options come from YAML."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise PidistillError(f"{where}: {key}: {error.errors()[0]['msg'].lower()}, got {value!r}") from None


def build_from_python(spec: str, what: str) -> Any:
    """Import MODULE, from the current folder too, and call its FACTORY(): this runs the user's code.

    spec: `MODULE:FACTORY`.
    what: what the factory makes, for errors.

    Raises PidistillError, with the exception's words, for whatever the code raises.
    """
    factory = import_from_python(spec, what, "FACTORY")
    try:
        return factory()
    except PidistillError:
        raise
    except (Exception, SystemExit) as error:
        raise ForeignError(explain(f"the {what} python:{spec} cannot be made", error)) from error


def import_from_python(spec: str, what: str, role: str = "NAME") -> Any:
    """Import a name of a module, from the current folder too: this runs the user's code.

    spec: `MODULE:NAME`, or `MODULE:CLASS.NAME`.
    what, role: what the name stands for, and what it is called, for errors.

    Raises PidistillError, with the exception's words, for whatever the module raises.
    """
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise PidistillError(f"a python {what} is python:MODULE:{role}, got python:{spec}")
    if module_name.endswith(".py"):
        raise PidistillError(f"python:{spec}: a module is named without .py: "
                             f"python:{module_name.removesuffix('.py')}:{name}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PidistillError(f"python:{spec}: {error}") from error
    except PidistillError:
        raise
    except (Exception, SystemExit) as error:  # a script without a guard for __main__ may end itself
        raise ForeignError(explain(f"python:{spec} cannot be imported", error)) from error
    finally:
        sys.path.pop(0)
    try:
        return attrgetter(name)(module)
    except AttributeError:
        raise PidistillError(f"python:{spec}: the module {module_name} has no {name}") from None


def build_from_config(family: str, config: str | dict[str, Any]) -> Any:
    """Make a member of a family from its name, or from a mapping that has its `name` and its options."""
    options = {"name": config} if isinstance(config, str) else dict(config)
    if "name" not in options:
        raise PidistillError(f"{family}: a mapping needs `name`, got {config}")
    return build(family, options.pop("name"), **options)
