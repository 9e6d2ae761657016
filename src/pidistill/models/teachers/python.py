"""`python:MODULE:FACTORY` is a teacher of the user's own, which FACTORY() makes."""

from __future__ import annotations

from pidistill.core.registry import build_from_python
from pidistill.models.denoiser import Denoiser, as_denoiser


def python(rest: str) -> Denoiser:
    """Call FACTORY() for a teacher. rest: `MODULE:FACTORY`.

    The module is imported (from the current folder too), so this runs the user's code.
    """
    return as_denoiser(build_from_python(rest, "teacher"))
