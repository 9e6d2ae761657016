"""`python:MODULE:FACTORY`: a teacher of the user's own, made by calling a function without arguments."""

from __future__ import annotations

import importlib
import os
import sys

from pidistill.denoiser import Denoiser, as_denoiser
from pidistill.errors import PidistillError


def python(rest: str) -> Denoiser:
    """rest: `MODULE:FACTORY`. The module is imported (from the current folder too), so this runs the user's code."""
    module_name, _, factory = rest.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), factory)):
        raise PidistillError(f"a python teacher is python:MODULE:FACTORY, got python:{rest}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PidistillError(f"python:{rest}: {error}") from None
    finally:
        sys.path.pop(0)
    if not hasattr(module, factory):
        raise PidistillError(f"python:{rest}: the module {module_name} has no {factory}")
    return as_denoiser(getattr(module, factory)())
