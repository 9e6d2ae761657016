"""What the package uses of PyTorch that PyTorch calls private, and which feature falls if it goes.

None of it is needed for a plain distillation on a GPU or with PyTorch's operators: each entry says what would have to be
given up, or written another way. A use that is not in the table fails here, and so does a name that PyTorch has lost.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from torch import nn

import pidistill

ROOT = Path(pidistill.__file__).parent
FEATURES = {
    "torch._dynamo.exc.BackendCompilerFailed": "a line instead of a traceback where torch.compile finds no compiler",
    "torch._dynamo.exc.TorchRuntimeError": "a stranger's own error instead of the compiler's, where its code fails",
    "torch.nn.Module._buffers": "averages of buffers that a module replaces, and tied ones, at their places",
    "torch.nn.Module._call_impl": "compiling a module in place, so that its state dictionary keeps its names",
    "torch.nn.Module._compiled_call_impl": "the same",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "the warning that this CPU has no instructions for bf16",
    "torch.ops.mkldnn._is_mkldnn_fp16_supported": "the warning that this CPU has no instructions for fp16",
    "torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack": "the autodiff scheme on edm2_unet in training",
    "torch.Tensor._version": "edm2_unet's normalised weights, kept between calls while the weight has not changed",
    "torch._C._functorch.maybe_current_level": "own kernels: they must not be used inside torch.func transforms",
    "torch._foreach_lerp_": "averages and RAdam in one pass over the weights",
    "torch._foreach_copy_": "averages of buffers in one pass",
    "torch._foreach_add": "RAdam in one pass over the weights",
    "torch._foreach_add_": "RAdam in one pass over the weights",
    "torch._foreach_sub_": "RAdam in one pass over the weights",
    "torch._foreach_mul_": "RAdam in one pass over the weights",
    "torch._foreach_addcmul_": "RAdam in one pass over the weights",
    "torch._fused_adam_": "RAdam in one pass over the weights, with steps left out on the device",
    "torch._foreach_norm": "one look at all tensors of a checkpoint for values that are not finite",
    "torch._subclasses.fake_tensor.FakeTensor": "the predicted memory of a step (dry run, microbatch: auto)",
    "torch._subclasses.fake_tensor.FakeTensorMode": "the same",
    "torch.utils._python_dispatch.TorchDispatchMode": "the same",
    "torch.UntypedStorage._cdata": "the same",
    "torch.ops.aten._scaled_dot_product_efficient_attention": "the same, as on a GPU",
    "torch.ops.aten._local_scalar_dense": "the same, of steps that ask for a value",
    "torch.autograd.Variable._execution_engine": "the same, of recomputed blocks",
}
OURS = {"os._exit"}  # not PyTorch's


def private_names(source: str) -> set[str]:
    """Dotted names with a part that begins with one underscore, but for a class's own attributes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            name = ast.unparse(node)
            found.add(name if re.fullmatch(r"[\w.]+", name) else f"expression.{node.attr}")
    return {name for name in found
            if any(part.startswith("_") and not part.startswith("__") for part in name.split(".")[1:])
            and not name.startswith(("self.", "cls."))}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_use_is_in_the_table(path):
    known = {name.rpartition(".")[2] for name in FEATURES}
    for name in private_names(path.read_text()) - OURS:
        first = next(part for part in name.split(".")[::-1] if part.startswith("_") or part in known)
        listed = first in known or any(f"{name}." in entry for entry in FEATURES)
        assert listed, f"{name} is private to PyTorch: add it to FEATURES"


@pytest.mark.parametrize("name", FEATURES)
def test_pytorch_still_has_it(name):
    import torch._dynamo.exc
    import torch._functorch.pyfunctorch
    import torch._subclasses.fake_tensor
    import torch.utils._python_dispatch

    value = torch
    for part in name.split(".")[1:]:
        value = getattr(nn.Module() if part in ("_compiled_call_impl", "_buffers") else value, part)
