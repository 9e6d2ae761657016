"""First-order upwind difference (Eq. 10)."""

from __future__ import annotations

from torch import Tensor

from pidistill.core.tensors import like
from pidistill.models.forms import interpolate
from pidistill.objectives.schemes.base import Network, StudentSide, choose_interval


class Upwind:
    """The scheme takes dx/dt at t_i from t_i and its next point u = t_{i+1}, in the form that is free of z:

        x_i - t_i (x_i - x_u)/(t_i - u) = F_i + t_i/(t_i - u) (1 - u/T) (F_u - F_i).

    At eps it looks back to t_{N-2}, as the reference implementation does.
    """

    order = 1
    points = 2
    recomputable = True

    def __call__(self, F: Network, z: Tensor, i: Tensor, t: Tensor, t_max: float) -> StudentSide:
        t_i, u = choose_interval(i, t)
        F_i, F_u = F(t_i, u)
        weight = like(t_i / (t_i - u) * (1 - u / t_max), z)
        return StudentSide(interpolate(z, t_i, F_i, t_max), t_i, F_i + weight * (F_u - F_i))
