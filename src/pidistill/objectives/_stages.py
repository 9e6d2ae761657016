"""Settings of a later stage, as changes of a run's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def change(config: Any, *changes: Mapping[str, Any]) -> Any:
    """Change settings: mappings are merged, but for the objective, whose options are all of them, at first."""
    values = config.model_dump() | changes[0]
    for later in changes[1:]:
        values = merge(values, later)
    return type(config).model_validate(values)


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings: what `changes` says, and else what `values` says."""
    merged = dict(values)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        merged[key] = merge(values[key], value) if both else value
    return merged
