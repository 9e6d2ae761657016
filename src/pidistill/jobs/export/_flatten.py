"""One file of Python out of a class and all that it needs of this package, in the package's own words.

Definitions are copied as they stand in their files, those that others need before them; the kernels for the CPU, which
are built where they run, give way to PyTorch's operators.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HOME = "pidistill"
# What a stranger's file does otherwise than the package.
SUBSTITUTES = {
    "PidistillError": "PidistillError = ValueError",
    "suggest_choices": 'def suggest_choices(what: str, name: str, known: list[str]) -> ValueError:\n'
                       '    return ValueError(f"unknown {what} {name!r} (choices: {\', \'.join(known)})")'}
KERNELS = "usable"  # asks, in an `if` of its own, whether a kernel of ours can be taken


class Module:
    """A file of the package: its top-level definitions and imports, by name.

    name: dotted. text: the file's. nodes: definitions. imports: (module, name or None) that a name comes from.
    """

    def __init__(self, name: str):
        spec = importlib.util.find_spec(name)
        assert spec and spec.origin
        self.name, self.text = name, Path(spec.origin).read_text(encoding="utf-8")
        self.nodes: dict[str, ast.stmt] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        for node in ast.parse(self.text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.nodes[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                leaves = [leaf for target in targets for leaf in ast.walk(target)]
                self.nodes |= {leaf.id: node for leaf in leaves if isinstance(leaf, ast.Name)}
            elif isinstance(node, ast.Import):
                self.imports |= {alias.asname or alias.name: (alias.name, None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
                self.imports |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}


def flatten_code(home: str, name: str, imports: Sequence[str] = (), tail: str = "") -> str:
    """Give one file's text with `name` of the module `home`, and all that it needs; it imports nothing of this package.

    imports, tail: more lines of imports, and text for the end of the file.
    """
    flattener = Flattener()
    flattener.imports |= set(imports)
    flattener.take(home, name)
    return flattener.write() + tail


class Flattener:
    """Collects definitions, those that others need first.

    modules: read so far. definitions: by module and name; imports: lines.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.definitions: dict[tuple[str, str], str] = {}
        self.imports: set[str] = set()
        self.begun: set[tuple[str, str]] = set()

    def write(self) -> str:
        """Write the file: imports of the standard library, then others, then the definitions."""
        groups: dict[bool, list[str]] = {}
        for line in sorted(self.imports, key=lambda line: (line.startswith("from"), line.lower())):
            groups.setdefault(line.split()[1].partition(".")[0] in sys.stdlib_module_names, []).append(line)
        head = ["from __future__ import annotations",
                *("\n".join(groups[known]) for known in (True, False) if known in groups)]
        return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(self.definitions.values()) + "\n"

    def read(self, name: str) -> Module:
        """Read a module once."""
        if name not in self.modules:
            self.modules[name] = Module(name)
        return self.modules[name]

    def take(self, home: str, name: str) -> None:
        """Take a definition of a module, after all that it needs; a name that is handed on is followed to its home."""
        module = self.read(home)
        if name not in module.nodes:
            if name in module.imports:
                self.follow(module, name)
            return
        if (home, name) in self.begun:
            return
        self.begun.add((home, name))
        if name in SUBSTITUTES:
            self.definitions[home, name] = SUBSTITUTES[name]
            return
        node = module.nodes[name]
        text = self.cut(module, node)
        for leaf in walk_without_kernels(node):
            if isinstance(leaf, ast.Attribute) and isinstance(leaf.value, ast.Name):
                inner = ".".join(map(str, module.imports.get(leaf.value.id, ("", ""))))
                if is_module(inner):  # native.conv3x3: a name of a module of the package
                    self.take(inner, leaf.attr)
                    text = re.sub(rf"\b{leaf.value.id}\.{leaf.attr}\b", leaf.attr, text)
            elif isinstance(leaf, ast.Name) and not hasattr(builtins, leaf.id):
                self.take(home, leaf.id)
        self.definitions[home, name] = text

    def follow(self, module: Module, name: str) -> None:
        """Follow an imported name: into the package, or to a line of imports."""
        place, attribute = module.imports[name]
        if place.partition(".")[0] == HOME:
            if attribute and not is_module(f"{place}.{attribute}"):
                self.take(place, attribute)
        elif attribute:
            self.imports.add(f"from {place} import {attribute}" + (f" as {name}" if name != attribute else ""))
        else:
            self.imports.add(f"import {place}" + (f" as {name}" if name != place else ""))

    def cut(self, module: Module, node: ast.stmt) -> str:
        """Cut a definition out of its file, with decorators and the comments right above it, without the kernels' part."""
        lines = module.text.splitlines()
        gone = {k for leaf in ast.walk(node) if isinstance(leaf, ast.If) and asks_for_kernels(leaf)
                for k in range(leaf.lineno - 1, leaf.end_lineno or 0)}
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        while first and lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(line for k, line in enumerate(lines[:node.end_lineno]) if k >= first and k not in gone)


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of this package."""
    try:
        return name.startswith(f"{HOME}.") and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def asks_for_kernels(node: ast.AST) -> bool:
    """Whether a statement is an `if` without `else` that asks for the kernels."""
    return isinstance(node, ast.If) and not node.orelse and any(
        isinstance(leaf, ast.Call) and ast.unparse(leaf.func).rpartition(".")[2] == KERNELS for leaf in ast.walk(node.test))


def walk_without_kernels(node: ast.AST) -> Iterator[ast.AST]:
    """Walk over a definition but for what is left out of it."""
    if not asks_for_kernels(node):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from walk_without_kernels(child)
