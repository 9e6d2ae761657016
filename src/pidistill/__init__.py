"""One-step generators from diffusion models by Physics Informed Distillation (Tee et al., TMLR 2024)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pidistill.check import check_teacher
    from pidistill.denoiser import Denoiser
    from pidistill.distillation import distill
    from pidistill.student import Student, load_student
    from pidistill.teachers import load_teacher

_HOMES = {"Denoiser": "denoiser", "Student": "student", "check_teacher": "check", "distill": "distillation",
          "load_student": "student", "load_teacher": "teachers", "PidistillError": "errors"}
__all__ = ["Denoiser", "PidistillError", "Student", "check_teacher", "distill", "load_student",
           "load_teacher"]


def __getattr__(name: str) -> Any:
    """Import on first use: `pidistill --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pidistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pidistill.{_HOMES[name]}"), name)
