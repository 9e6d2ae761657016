"""Second-order central difference on three points of the non-uniform grid."""

from __future__ import annotations

from torch import Tensor

from pidistill.core.tensors import like
from pidistill.models.forms import interpolate
from pidistill.objectives.schemes.base import Network, StudentSide


class Central:
    """The scheme takes dx/dt at t_i from the parabola through three neighbouring points: three network evaluations.

    With h = t_{i-1} - t_i and k = t_i - t_{i+1} it is (k/h (x_{i-1} - x_i) + h/k (x_i - x_{i+1})) / (h + k), and not
    (x_{i-1} - x_{i+1})/(h + k), which on this grid is of first order. At T and at eps, where a neighbour is missing, the
    next point but one stands in, and the same parabola is differentiated at its end: second order there too.
    Free of z it is x - t dx/dt = F_i - t_i sum_k w_k (1 - t_k/T) (F_k - F_i).
    """

    order = 2
    points = 3
    recomputable = True

    def __call__(self, F: Network, z: Tensor, i: Tensor, t: Tensor, t_max: float) -> StudentSide:
        last = len(t) - 1
        a_index = (i - 1).where(i > 0, i + 2)         # at T: t_1 and t_2
        b_index = (i + 1).where(i < last, i - 2)      # at eps: t_{N-2} and t_{N-3}
        t_i, a, b = t[i], t[a_index], t[b_index]
        F_i, F_a, F_b = F(t_i, a, b)
        # Derivatives at t_i of the Lagrange polynomials that are 1 at a, and at b.
        w_a, w_b = (t_i - b) / ((a - t_i) * (a - b)), (t_i - a) / ((b - t_i) * (b - a))
        slope = like(w_a * (1 - a / t_max), z) * (F_a - F_i) + like(w_b * (1 - b / t_max), z) * (F_b - F_i)
        return StudentSide(interpolate(z, t_i, F_i, t_max), t_i, F_i - like(t_i, z) * slope)
