"""The pipeline that exports bring is tested where it is used, in `test_diffusers.py`; here, that it is all that runs."""

from __future__ import annotations

import ast
import sys

from pidistill.jobs.export.diffusers import DECODER, PIPELINE


def test_it_needs_torch_and_diffusers_alone():
    for path in (PIPELINE, DECODER):
        text = path.read_text()
        imported = {(getattr(node, "module", None) or node.names[0].name).partition(".")[0]
                    for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)}
        assert imported <= {"torch", "diffusers", *sys.stdlib_module_names}
        assert len(text.splitlines()) < 100
