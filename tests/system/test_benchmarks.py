"""Benchmarks and tools use names of the package that are there. What they measure is theirs; running them takes minutes."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("examples/*.py")])


def import_names(tree: ast.AST) -> dict[str, Any]:
    """What a script takes from the package, by name."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pidistill", "benchmarks", "tests")):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_of_the_package_is_there(path):
    """And every attribute: `build.load_library`, or the name in `patch.object(unet, "resample", ...)`."""
    tree = ast.parse(path.read_text())
    names = import_names(tree)
    for node in ast.walk(tree):
        owner, attribute = None, ""
        if isinstance(node, ast.Attribute):
            owner, attribute = node.value, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "patch.object":
            owner, attribute = node.args[0], ast.literal_eval(node.args[1])
        if isinstance(owner, ast.Name) and owner.id in names:
            assert hasattr(names[owner.id], attribute), f"line {node.lineno}: {owner.id}.{attribute}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_call_of_the_package_has_its_arguments(path):
    tree = ast.parse(path.read_text())
    names = import_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names \
                and all(keyword.arg for keyword in node.keywords) and not any(isinstance(a, ast.Starred) for a in node.args):
            keywords = {str(keyword.arg): None for keyword in node.keywords}
            try:
                inspect.signature(names[node.func.id]).bind(*node.args, **keywords)
            except TypeError as error:
                pytest.fail(f"line {node.lineno}: {node.func.id}: {error}")


@pytest.mark.parametrize("name", [path.stem for path in ROOT.glob("benchmarks/*.py")])
def test_every_patched_name_is_there(name):
    """A name that a benchmark replaces by another, as `patch("pidistill.x.y", ...)`."""
    for node in ast.walk(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pidistill.") \
                and node.value.replace(".", "").replace("_", "").isalnum() and node.value != "pidistill.cli":
            module, _, attribute = node.value.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), node.value
