"""One step of a solver of the teacher's ODE dx/dt = (x - D(x, t))/t, from a time to another of each sample's own.

The samplers of `models/samplers` go along times that all samples share.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pidistill.core.tensors import like

SolverStep = Callable[..., Tensor]  # (denoise, x (B, ...), t (B,), u (B,), labels) -> x at u


def step_euler(denoise: Callable[..., Tensor], x: Tensor, t: Tensor, u: Tensor, labels: Tensor | None = None) -> Tensor:
    """Take Euler's step x(u) = x + (u - t) (x - D(x, t))/t. x: (B, ...) at t (B,) -> (B, ...) at u (B,)."""
    return x + like(u - t, x) * (x - denoise(x, t, labels)) / like(t, x)


def step_heun(denoise: Callable[..., Tensor], x: Tensor, t: Tensor, u: Tensor, labels: Tensor | None = None) -> Tensor:
    """Take Heun's step x(u) = x + (u - t) (d + e)/2, d the slope at t and e that at u where Euler's step ends; u > 0."""
    d = (x - denoise(x, t, labels)) / like(t, x)
    y = x + like(u - t, x) * d
    e = (y - denoise(y, u, labels)) / like(u, x)
    return x + like(u - t, x) * (d + e) / 2


SOLVERS: dict[str, SolverStep] = {"euler": step_euler, "heun": step_heun}
