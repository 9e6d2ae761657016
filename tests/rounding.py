"""How far float32 may be from float64, on any processor: Monte Carlo arithmetic (Parker, 1997) on a float64 computation.

What a processor changes in float32 is how the same numbers are rounded: the order of sums (vector width, threads, blocks of
a matrix product), fused multiply-adds, and the algorithm of a convolution (direct, or Winograd's). In every case the result
of an operation is off by

    elementwise:              |error| <= u |y|,              u = 2^-24
    a sum of n products:      |error| ~  sqrt(n) u rms(y)    in whatever order (Higham & Mary, 2019)

so the same function in float64, with a random error of this size in every operation, shows how much such errors come to. The
sums of the networks in the tests have at most 1152 terms (3x3 convolutions of 128 channels): sqrt(n) u = 2e-6, which
Winograd's kernels keep too (`pidistill.nets.parts.native`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ELEMENT, SUM = 2.0**-24, 2e-6
SUMS = ("convolution", "mm", "addmm", "bmm", "native_group_norm", "sum", "mean", "_scaled_dot_product", "linalg_vector_norm",
        "avg_pool2d", "_softmax")
ELEMENTWISE = ("add", "sub", "mul", "div", "reciprocal", "silu", "sin", "cos", "exp", "log", "sqrt", "rsqrt", "pow", "lerp",
               "addcmul", "silu_backward")


class Rounding(TorchDispatchMode):
    """Adds to the result of every operation in float64 a random error of the size that float32 has there."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.partition(".")[0]
        if name.endswith("_") or not (name.startswith(SUMS) or name in ELEMENTWISE):
            return result
        if isinstance(result, tuple):  # of a backward pass: gradients of input, weight and bias
            return tuple(self.round(value, name) for value in result)
        return self.round(result, name)

    def round(self, value: Any, name: str) -> Any:
        """The value of an operation with an error of float32's size; what is not in float64 stays."""
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        noise = torch.empty(value.shape, dtype=value.dtype).normal_(generator=self.generator)
        if name.startswith(SUMS):
            return value + SUM * value.square().mean().sqrt() * noise
        return value * (1 + ELEMENT * noise)


def float32_bound(function: Callable[[], Tensor], error: Callable[[Tensor, Tensor], float], draws: int = 4) -> float:
    """The largest `error(value, exact)` of a float64 function under random roundings of float32's size."""
    exact, errors = function(), []
    for seed in range(draws):
        with Rounding(seed):
            errors.append(error(function(), exact))
    return max(errors)
