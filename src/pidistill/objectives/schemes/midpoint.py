"""Second-order central difference at the cost of the first order (Table 3)."""

from __future__ import annotations

from torch import Tensor

from pidistill.core.tensors import like
from pidistill.models.forms import interpolate
from pidistill.objectives.schemes.base import Network, StudentSide, choose_interval


class Midpoint:
    """The scheme takes state, time and derivative in the middle m of [u, t_i], u = t_{i+1}, from its two ends:

        x_m = (x_i + x_u)/2,   t_m = (t_i + u)/2,   dx/dt = (x_i - x_u)/(t_i - u).

    The prediction x_m - t_m dx/dt is where the secant through both ends meets t = 0: the same number as upwind's. Only
    the point changes at which the teacher is called, from the secant's end to its middle, and that makes the order 2.
    i = N-1 takes the last interval once more: the grid has one interval fewer than points.
    """

    order = 2
    points = 2
    recomputable = True

    def __call__(self, F: Network, z: Tensor, i: Tensor, t: Tensor, t_max: float) -> StudentSide:
        t_i, u = choose_interval(i, t)
        F_i, F_u = F(t_i, u)
        weight = like(t_i / (t_i - u) * (1 - u / t_max), z)
        x = (interpolate(z, t_i, F_i, t_max) + interpolate(z, u, F_u, t_max)) / 2
        return StudentSide(x, (t_i + u) / 2, F_i + weight * (F_u - F_i))
