"""This module compiles functions and modules with torch.compile, and runs them eagerly where there is no compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from pidistill.core.errors import words_of

F = TypeVar("F", bound=Callable[..., Any])


def try_compile(target: F, *, what: str, **options: Any) -> F:
    """Give a compiled function, or make a module compile itself and give that same module.

    Compilation happens at the first call. Where it fails, mostly for want of a C++ compiler or of Triton, one line says so,
    and this and all later calls run without compilation; errors of the function itself are raised as ever. Names, weights
    and copies of a module stay what they were; copies are not compiled.

    target: the function or module to compile.
    what: its name in the line that says that it is not compiled.
    options: keyword arguments of torch.compile.
    """
    if isinstance(target, nn.Module):
        # Where nn.Module.compile puts it: hooks run, and copying and state dictionaries leave it out.
        target._compiled_call_impl = add_fallback(target._call_impl, what, options)
        return target
    return add_fallback(target, what, options)  # type: ignore[return-value]


def add_fallback(eager: Callable[..., Any], what: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Give a function that runs `eager` compiled, until compilation fails; from then on it runs `eager` itself.

    eager: the function to compile.
    what: its name in the line that says that it is not compiled.
    options: keyword arguments of torch.compile.
    """
    from torch._dynamo.exc import BackendCompilerFailed, TorchRuntimeError  # half a second, for those who compile

    fast = torch.compile(eager, **options)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal fast
        if fast is not eager:
            try:
                return fast(*args, **kwargs)
            except BackendCompilerFailed as error:
                from pidistill.core.console import console

                cause = getattr(error, "inner_exception", error)
                reason = words_of(cause)[:160]  # a compiler's own would be pages
                console.print(f"{what} is not compiled, and slower: {reason}", soft_wrap=True, markup=False)
                fast = eager
            except TorchRuntimeError:  # the function itself failed, on tensors without values: its own error says more
                pass
        return eager(*args, **kwargs)

    return call
