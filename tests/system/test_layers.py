"""Nine rooms, each importing only those below it; and no circle of files inside a room."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pidistill

ROOMS = ("cli", "jobs", "training", "evaluation", "objectives", "models", "nets", "files", "core")  # from top to bottom
STRANGERS = {"evaluation": "objectives"}  # rooms that could import another by their order, and do not

ROOT = Path(pidistill.__file__).parent
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in ROOT.rglob("*.py") if path not in (ROOT / "__init__.py", ROOT / "denoiser.py")}  # that one: an alias


def imported(name: str) -> set[str]:
    """Modules of the package that a module imports anywhere in its file, as dotted names below `pidistill`."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            # `from pidistill.core import seeds` imports a module, `from pidistill.core.seeds import stream` a name of one.
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module.removeprefix("pidistill.") in MODULES else node.module)
    return {module for module in (name.removeprefix("pidistill.") for name in found) if module in MODULES} - {name}


def test_every_file_is_in_a_room():
    assert {name.partition(".")[0] for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name: str):
    room = name.partition(".")[0]
    for module in imported(name):
        other = module.partition(".")[0]
        assert ROOMS.index(other) >= ROOMS.index(room), f"{name} imports {module}, from a room above"
        assert STRANGERS.get(room) != other, f"{name} imports {module}, and these rooms do not know each other"


def test_no_circle_of_files():
    TopologicalSorter({name: imported(name) for name in MODULES}).prepare()  # raises CycleError, which names the circle


def test_packages_hand_names_on_and_define_nothing():
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name != "nets.parts.native":
            nodes = ast.parse(path.read_text()).body
            assert all(isinstance(node, ast.ImportFrom | ast.Expr) for node in nodes), f"{name} defines something"


def test_one_file_each_knows_accelerate_and_typer():
    of_accelerate = {"training.trainer", "training.setup", "training.trackers"}
    for library, expected in (("accelerate", of_accelerate), ("typer", {"cli"})):
        users = {name for name in MODULES for node in ast.walk(ast.parse(MODULES[name].read_text()))
                 if library in {(getattr(node, "module", None) or "").partition(".")[0],
                                *(alias.name for alias in getattr(node, "names", ()) if isinstance(node, ast.Import))}}
        assert users and all(any(user.startswith(room) for room in expected) for user in users), (library, users)


LONG = 60  # lines


@pytest.mark.parametrize("name", sorted(name for name in MODULES if len(MODULES[name].read_text().splitlines()) > LONG))
def test_long_modules_have_tests_of_their_own(name):
    *rooms, module = name.split(".")
    assert Path(__file__).parents[1].joinpath(*rooms, f"test_{module.lstrip('_')}.py").is_file()


def test_a_name_is_defined_once():
    """At the top of a module. The command line's verbs are called as the jobs are, members of families as their files."""
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if not module.startswith("cli."):
            for node in ast.parse(path.read_text()).body:
                for name in names_of(node):
                    homes.setdefault(name, []).append(module)
    members = {name.rpartition(".")[2] for name in MODULES}
    of_files = lambda name, modules: {module.rpartition(".")[2].replace("_", "") for module in modules} == {name.lower()}
    twice = {name: modules for name, modules in homes.items()
             if len(modules) > 1 and name not in members and not of_files(name, modules)}
    assert not twice


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]


def test_functions_fit_on_a_screen():
    """But for networks' constructors, which are lists of layers."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not (module.startswith("nets.") and node.name == "__init__"):
                assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"
