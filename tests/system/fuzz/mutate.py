"""Damage to files and to records, as hypothesis draws it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]
KINDS: dict[str, Callable[[bytes, bytes, int, int, bytes], bytes]] = {  # (file, another, i <= j, some bytes) -> damaged
    "flip": lambda d, o, i, j, x: d[:i] + bytes([d[i] ^ 1 << j % 8]) + d[i + 1:],
    "cut": lambda d, o, i, j, x: d[:i],
    "drop": lambda d, o, i, j, x: d[:i] + d[j:],
    "insert": lambda d, o, i, j, x: d[:i] + x + d[i:],
    "double": lambda d, o, i, j, x: d[:j] + d[i:j] + d[j:],
    "splice": lambda d, o, i, j, x: d[:i] + o[j * len(o) // len(d):],
    "number": lambda d, o, i, j, x: d[:i] + NUMBERS[j % len(NUMBERS)].to_bytes(8, "little") + d[i + 8:],
    "random": lambda d, o, i, j, x: x}
DAMAGE = st.lists(st.tuples(st.sampled_from([*["flip"] * 4, *KINDS]), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
                            st.binary(max_size=24)), min_size=1, max_size=3)
HOSTILE: list[Any] = [None, True, -1, 0, 7, 10**9, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "mlp",
                      "../x", "a\nb\x1b[31m", "x" * 5000, [], [1], [10**9] * 3, ["x"], [[]], {}, {"name": "mlp"},
                      {"x": {"y": 1}}]
CHANGES = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, len(HOSTILE))), min_size=1, max_size=3)


def damaged(data: bytes, other: bytes, damage: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, a, b, extra in damage:
        if data:
            i, j = sorted((a % len(data), b % len(data)))
            data = KINDS[kind](data, other, i, j, extra)
    return data


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a record."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [place for key, inner in items for place in ((value, key), *places(inner))]


def changed(record: Any, changes: list[tuple[int, int]]) -> Any:
    """A copy in which some values are hostile ones, or gone."""
    record = json.loads(json.dumps(record))
    for where, what in changes:
        if found := places(record):
            container, key = found[where % len(found)]
            if what == len(HOSTILE):
                del container[key]
            else:
                container[key] = copy.deepcopy(HOSTILE[what])
    return record
