"""A network may know images without a class by a label among others, its null label, which is never drawn.

Classes are numbered 0, 1, ... without it, as users, students and data sets count them; a network that knows the classes
0-9 and, as its label 4, no class is asked with 0-3 and 5-10. Guidance (Ho & Salimans, 2022) needs such a label.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.files.folders import split_options

MOST = 10**6  # labels that a network knows, at most
# A network's own number of the label, "none" for a network that is called without labels then, None where there is none.
Null = int | str | None
class Guide(NamedTuple):
    """The null label, and w of classifier-free guidance."""

    null: Null = None
    guidance: float = 1.0


OPTION = re.compile(r"\s*(null|guidance)\s*=(.*)", re.DOTALL)


def parse_null(value: Any) -> Null:
    """Check a null label as users and files write it: a number, `none`, or None. Raises PidistillError for all else."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10:
        text = int(text)
    if text is None or text == "none" or (type(text) is int and 0 <= text <= MOST):
        return text
    raise PidistillError("null must be the network's number of the label that stands for no class, such as null=10, or "
                         f"null=none where the network is called without labels then; got {str(value)[:40]!r}")


def parse_guidance(value: Any) -> float:
    """Check a scale of guidance, a positive number. Raises PidistillError for all else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise PidistillError(f"guidance must be a positive number, such as guidance=3; got {str(value)[:40]!r}")
    return number


def make_guide(null: Any, guidance: Any) -> Guide:
    """Check null label and guidance, as users and files write them. Raises PidistillError for what is neither."""
    return Guide(parse_null(null), parse_guidance(guidance))


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split `,null=N` and `,guidance=W` off a teacher spec, wherever they stand; gives the rest of it, and what they say.

    The name of a folder is left as it is. Raises PidistillError for an option that stands twice.
    """
    path, parts = split_options(spec)
    kept, options = [path], dict[str, str]()
    for part in parts:
        found = OPTION.fullmatch(part)
        if not found:
            kept.append(part)
        elif found[1] in options:
            raise PidistillError(f"{spec}: {found[1]} stands twice")
        else:
            options[found[1]] = found[2]
    return ",".join(kept), options


def count_labels(num_classes: int, null: Null) -> int:
    """Count the labels that a network knows, its null label among them; 0 for one without classes and without it."""
    return max(num_classes, null) + 1 if isinstance(null, int) else num_classes


def count_classes(labels: int, null: Null) -> int:
    """Count the classes among so many labels of a network: all but the null label, if that is one of them."""
    return labels - (isinstance(null, int) and null < labels)


def read_labels(config: dict[str, Any]) -> tuple[int, Null]:
    """Read from a config.json how many labels the network knows, and its null label.

    num_classes is without the latter where it is called `null`, and with it in earlier folders, which call it `null_label`.
    """
    if "null" not in config:
        return config["num_classes"], parse_null(config.get("null_label"))
    null = parse_null(config["null"])
    return count_labels(config["num_classes"], null), null


def number_labels(labels: Tensor | None, null: Null) -> Tensor | None:
    """Turn classes (B,) int64 into the network's own labels: those past the null label are one higher there."""
    return labels + (labels >= null) if isinstance(null, int) and labels is not None else labels


def repeat_null(null: Null, x: Tensor) -> Tensor | None:
    """Give the null label to every sample of x (B, ...), (B,) int64; None where networks are called without labels."""
    return torch.full((len(x),), null, device=x.device) if isinstance(null, int) else None
