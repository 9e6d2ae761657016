"""Imports inside the package point only to a lower layer, or to the family's own __init__."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pidistill

ROOT = Path(pidistill.__file__).parent
LAYERS = {
    0.0: "errors pickle_machine",
    0.05: "headers",
    0.07: "archives",
    0.1: "tensors seeds plugins files precision provenance progress experiments plots published parallel images memory "
         "optim parts signals finite onnx_file",
    0.15: "downloads edm_pickle pipeline compiling manifest log",
    0.2: "config",
    0.25: "dinov2 native",
    0.3: "features unet",
    1: "grid schemes distances nets preconditioning",
    1.2: "recompute sharding",
    1.5: "decoder",
    2: "denoiser",
    3: "teachers student samplers data",
    4: "objectives metrics models pictures ema",
    4.5: "references",
    4.6: "measure",
    4.7: "footprint",
    4.8: "microbatch",
    5: "checkpoint step",
    5.5: "runs",
    6: "trainer sample evaluate trajectory describe check convert",
    7: "distillation train_teacher compare",
    7.1: "dryrun",
    7.2: "reproduce",
    7.5: "terminal",
    8: "cli",
}
LEVEL = {name: level for level, names in LAYERS.items() for name in names.split()}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, as dotted names below `pidistill`."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from pidistill import runs` imports a module; `from pidistill.grid import Grid` does not.
            found |= names if node.module == "pidistill" else {node.module}
    return {name.removeprefix("pidistill.") for name in found if name.startswith("pidistill.")}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path: Path):
    here = path.parts[0].removesuffix(".py")
    for name in imported(path):
        there = name.split(".")[0]
        own_init = name == here and path.name != "__init__.py" and len(path.parts) > 1
        assert LEVEL[there] < LEVEL[here] or own_init, f"{path} (layer {LEVEL[here]}) imports {name}"


def test_every_module_has_a_layer():
    modules = {path.parts[0].removesuffix(".py") for path in FILES}
    assert modules == set(LEVEL)


def test_only_the_trainer_knows_accelerate():
    users = [str(path) for path in FILES if "accelerate" in {
        (node.module or "").split(".")[0] for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom)}]
    assert users == ["trainer.py"]
