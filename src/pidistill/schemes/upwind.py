"""First-order upwind difference (Eq. 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pidistill.schemes import Compared
from pidistill.tensors import like


class Upwind:
    """dx/dt at t_i from t_i and its next point t_{i+1}, in the form that is free of z.

    With x from Eq. (7) and u = t_{i+1} the compared quantity is
        x_i - t_i (x_i - x_u)/(t_i - u) = F_i + t_i/(t_i - u) (1 - u/T) (F_u - F_i),
    in which z, of magnitude T, has cancelled on paper instead of in float32.
    """

    order = 1

    def times(self, i: Tensor, t: Tensor) -> Sequence[Tensor]:
        last = len(t) - 1
        return t[i], t[torch.where(i < last, i + 1, i - 1)]  # looks back at eps: Eq. (10) has no next point there

    def combine(self, F: Sequence[Tensor], times: Sequence[Tensor], z: Tensor, t_max: float) -> Compared:
        (F_i, F_u), (t, u) = F, times
        s = like(t / t_max, z)
        weight = like(t / (t - u) * (1 - u / t_max), z)  # formed in float64, since t and u are close
        return Compared(x=s * z + (1 - s) * F_i, prediction=F_i + weight * (F_u - F_i))
