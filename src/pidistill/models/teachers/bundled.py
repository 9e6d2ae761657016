"""`bundled:NAME`: teachers that come with the package."""

from __future__ import annotations

from pathlib import Path

from pidistill.denoiser import Denoiser
from pidistill.plugins import choices
from pidistill.teachers import read_teacher

ASSETS = Path(__file__).parent.parent / "assets"


def bundled(rest: str, *, weights: bool = True) -> Denoiser:
    """rest: the name, `digits` (16x16 grey, 10 classes, 5,000 MNIST digits)."""
    known = sorted(path.parent.name for path in ASSETS.glob("*/teacher"))
    if rest not in known:
        raise choices("bundled teacher", rest, known)
    return read_teacher(ASSETS / rest / "teacher", weights=weights)
