"""`bundled:NAME` is a teacher that comes with the package."""

from __future__ import annotations

from pidistill.core.registry import suggest_choices
from pidistill.files.folders import ASSETS
from pidistill.models.denoiser import Denoiser
from pidistill.models.teachers.base import read_teacher


def bundled(rest: str, *, weights: bool = True) -> Denoiser:
    """Read the teacher of a name: `digits` (16x16 grey, 10 classes, 5,000 MNIST digits).

    rest: the name. weights: as in `load_teacher`.
    """
    bundles = sorted(path.parent.name for path in ASSETS.glob("*/teacher"))
    if rest not in bundles:
        raise suggest_choices("bundled teacher", rest, bundles)
    return read_teacher(ASSETS / rest / "teacher", weights=weights)
