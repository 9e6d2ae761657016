"""One-step generators from diffusion models by Physics Informed Distillation (Tee et al., TMLR 2024)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pidistill.core.errors import PidistillError
    from pidistill.evaluation.evaluate import evaluate
    from pidistill.jobs.check import check_teacher
    from pidistill.jobs.distill import distill, steps
    from pidistill.jobs.export.base import export
    from pidistill.models.denoiser import Denoiser, Preconditioned
    from pidistill.models.samplers.base import Sampler, sample_teacher
    from pidistill.models.student import Student, load_student
    from pidistill.models.teachers.base import load_teacher
    from pidistill.objectives.base import Follower, Objective, Part, Phase, Setup

_HOMES = {"Denoiser": "models.denoiser", "Follower": "objectives.base", "Objective": "objectives.base",
          "Part": "objectives.base", "Phase": "objectives.base", "PidistillError": "core.errors",
          "Preconditioned": "models.denoiser", "Sampler": "models.samplers.base", "Setup": "objectives.base",
          "Student": "models.student", "check_teacher": "jobs.check", "distill": "jobs.distill",
          "evaluate": "evaluation.evaluate", "export": "jobs.export.base", "load_student": "models.student",
          "load_teacher": "models.teachers.base", "sample_teacher": "models.samplers.base", "steps": "jobs.distill"}
__all__ = ["Denoiser", "Follower", "Objective", "Part", "Phase", "PidistillError", "Preconditioned", "Sampler", "Setup",
           "Student", "check_teacher", "distill", "evaluate", "export", "load_student", "load_teacher", "sample_teacher",
           "steps"]


def __getattr__(name: str) -> Any:
    """Import on first use: `pidistill --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pidistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pidistill.{_HOMES[name]}"), name)
