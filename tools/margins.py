"""A pytest plugin: how close the tests come to their bounds, so that none depends on one processor's rounding.

    python -m pytest -p tools.margins -o enable_assertion_pass_hook=true tests/nets tests/objectives

At the end stand the tightest tests, each with the largest share of a bound that it used: of `a < b`, pytest.approx and
torch.testing.assert_close. A share near 1 is fine where the number is counted, or of float64; in float32 it is luck.
Other kernels come by `ONEDNN_MAX_CPU_ISA=SSE41`, `PIDISTILL_NATIVE=0`, `PIDISTILL_TEST_THREADS=2`, and
`CC="gcc -mno-avx -mno-fma"` for the package's own kernels with narrower vectors.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

SHOWN = 20
NUMBER = r"(?:tensor\()?([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\)?"
shares: dict[str, tuple[float, str]] = {}
running = ""


def note(share: float, what: str) -> None:
    """Keep the largest share of a bound that the running test used."""
    if share > shares.get(running, (0.0, ""))[0]:
        shares[running] = share, what


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    global running
    running = nodeid


def pytest_assertion_pass(item: Any, lineno: int, orig: str, expl: str) -> None:
    line = expl.split("\n")[0].strip("()")
    if match := re.match(rf"{NUMBER} == {NUMBER} ± {NUMBER}", line):
        value, expected, tolerance = map(float, match.groups())
        if tolerance:
            note(abs(value - expected) / tolerance, f"{orig}: {line}")
        return
    for comparison in re.split(r" and |\) and \(", line):
        terms = re.split(r" (<=|<|>=|>) ", comparison.strip("()"))
        matches = [re.fullmatch(NUMBER, term.strip()) for term in terms[::2]]
        for left, sign, right in zip(matches, terms[1::2], matches[1:]):
            if left and right:
                small, large = sorted((float(left[1]), float(right[1])))
                if sign[0] == ("<" if float(left[1]) == small else ">") and 0 <= small < large and not large.is_integer():
                    note(small / large, f"{orig}: {comparison}")


def measured(assert_close: Any) -> Any:
    """`assert_close`, which also notes the share of its tolerance that was used."""
    defaults = {torch.float64: (1e-7, 1e-7), torch.float32: (1.3e-6, 1e-5), torch.float16: (1e-3, 1e-5),
                torch.bfloat16: (1.6e-2, 1e-5)}

    def check(actual: Any, expected: Any, **options: Any) -> None:
        assert_close(actual, expected, **options)
        if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor) and actual.is_floating_point():
            rtol, atol = (options.get(key) for key in ("rtol", "atol"))
            rtol, atol = defaults[actual.dtype] if rtol is None or atol is None else (rtol, atol)
            a, b = (x.detach().cpu().double() for x in (actual, expected))
            share = ((a - b).abs() / (atol + rtol * b.abs())).nan_to_num(0, 0, 0)
            note(share.max().item() if share.numel() else 0, f"assert_close(rtol={rtol}, atol={atol})")

    return check


@pytest.hookimpl
def pytest_configure(config: Any) -> None:
    torch.testing.assert_close = measured(torch.testing.assert_close)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("tightest bounds")
    for test, (share, what) in sorted(shares.items(), key=lambda item: -item[1][0])[:SHOWN]:
        terminalreporter.write_line(f"{share:.3f}  {test}  {what[:90]}")
