"""The exact derivative in t, by forward-mode differentiation through the network (Section 6.2)."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pidistill.core.tensors import like
from pidistill.models.forms import interpolate
from pidistill.objectives.schemes.base import Network, StudentSide


class Autodiff:
    """The scheme computes x - t dx/dt = F - t (1 - t/T) dF/dt, without a grid step.

    So it has no error of discretisation and needs no neighbour at the ends. The paper finds that it leads to unphysical
    solutions, and keeps finite differences. Nothing cancels in it, so low precision hurts it less. It costs a forward pass
    with tangents and the backward pass of both.
    """

    order = math.inf
    points = 2
    recomputable = False

    def __call__(self, F: Network, z: Tensor, i: Tensor, t: Tensor, t_max: float) -> StudentSide:
        t_i = t[i]
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # fused attention has no forward-mode derivative
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # PyTorch's own, inside jvp
            F_i, slope = torch.func.jvp(lambda u: F(u)[0], (t_i,), (torch.ones_like(t_i),))  # type: ignore[misc]
        weight = like(t_i * (1 - t_i / t_max), z)
        return StudentSide(interpolate(z, t_i, F_i, t_max), t_i, F_i - weight * slope)
