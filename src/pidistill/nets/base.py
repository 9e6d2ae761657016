"""Raw networks F(x, c_noise, labels) are built here from their descriptions, as configurations and folders hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build
from pidistill.files.weights import ANY, Allowance


def build_net(spec: dict[str, Any], shape: Sequence[int], num_classes: int, elements: int = ANY,
              where: Any = "") -> nn.Module:
    """Build a network from its description. Raises PidistillError in one line.

    spec: {"name": a file of this folder, options of its class}.
    shape: of an image, (C, H, W).
    num_classes: of labels; 0 for an unconditional network.
    elements: numbers that its weights may have at most.
    where: the file with the description, for messages.
    """
    options = dict(spec)
    name = options.pop("name")
    if "num_classes" in options:
        raise PidistillError(f"nets/{name}: num_classes comes from the teacher or the data; leave it out")
    try:
        with Allowance(elements, where or f"nets/{name}"):
            return build("nets", name, shape, num_classes=num_classes, **options)
    except (RuntimeError, ValueError, ArithmeticError) as error:  # impossible sizes, such as width=-3
        raise PidistillError(f"nets/{name} cannot be built with {options}: {error}") from None
