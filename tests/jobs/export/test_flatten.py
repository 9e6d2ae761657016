"""A network in one file: everything that it needs, nothing of this package, no kernels."""

from __future__ import annotations

import ast
import sys

import pytest
import torch

from pidistill.core.registry import find_member
from pidistill.jobs.export._flatten import flatten_code
from pidistill.nets.base import build_net
from pidistill.nets.parts import native
from tests.system.test_contracts import NET_OPTIONS

NETS = ["song_unet", "dhariwal_unet", "edm2_unet", "equilibrium", "mlp"]


@pytest.mark.parametrize("name", NETS)
def test_a_network_in_one_file_is_the_network(name):
    kind = find_member("nets", name)
    text = flatten_code(kind.__module__, kind.__name__)
    tree = ast.parse(text)
    imported = {(getattr(node, "module", None) or node.names[0].name).partition(".")[0]
                for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert imported <= {"torch", *sys.stdlib_module_names} and "pidistill" not in text and "native" not in text
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))
    space: dict = {}
    exec(compile(text, name, "exec"), space)
    options = NET_OPTIONS.get(name, {})
    net = build_net({"name": name, **options}, (1, 8, 8), 3).eval()
    flat = space[kind.__name__]((1, 8, 8), num_classes=3, **options).eval()
    flat.load_state_dict(net.state_dict())
    x, c, y = torch.randn(2, 1, 8, 8), torch.tensor([0.3, -1.0]), torch.tensor([0, 2])
    with native.switched_off():
        assert torch.equal(flat(x, c, y), net(x, c, y))
    with pytest.raises(ValueError, match="multiples" if name != "mlp" else "temporal"):
        space[kind.__name__]((1, 7, 7), **options | ({"temporal": -1} if name == "mlp" else {}))


def test_more_lines_and_an_end():
    kind = find_member("nets", "mlp")
    text = flatten_code(kind.__module__, kind.__name__, ["from typing import Any", "import json"], "\nEND = 1\n")
    head = text.split("\n\n\n")[0]
    assert head.startswith("from __future__ import annotations\n\nimport json") and "from typing import Any" in head
    assert text.endswith("END = 1\n")
