"""A raw network from its description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build
from pidistill.files.weights import ANY, Allowance


def build_net(spec: dict[str, Any], shape: Sequence[int], num_classes: int, elements: int = ANY,
              where: Any = "") -> nn.Module:
    """A network for images of the shape (C, H, W) from {"name": ..., options}, of so many elements at most."""
    options = dict(spec)
    name = options.pop("name")
    if "num_classes" in options:
        raise PidistillError(f"nets/{name}: num_classes comes from the teacher or the data; leave it out")
    try:
        with Allowance(elements, where or f"nets/{name}"):
            return build("nets", name, shape, num_classes=num_classes, **options)
    except (RuntimeError, ValueError, ArithmeticError) as error:  # impossible sizes, such as width=-3
        raise PidistillError(f"nets/{name} cannot be built with {options}: {error}") from None
