"""`gaussian:...` is a teacher in closed form, of Gaussian data or a mixture, for tests and examples.

For N(mu, s^2 I): D(x, t) = mu + (x - mu) s^2/(s^2 + t^2), and x(t) = mu + (z - mu) sqrt((s^2 + t^2)/(s^2 + T^2)) solves the
ODE (6) of the paper from z at T.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import like
from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import RHO, T_MAX, T_MIN


class Gaussian(Denoiser):
    """A mixture of isotropic Gaussians sum_k w_k N(mu_k, s_k^2 I) is the data, over images of any shape.

    means: mu_k, (K, *shape).
    scales: s_k, (K,).
    weights: w_k, (K,), normalised here; by default all the same.
    conditional: whether class k is component k.
    """

    means: Tensor
    scales: Tensor
    weights: Tensor

    def __init__(self, means: Tensor, scales: Tensor, weights: Tensor | None = None, *, conditional: bool = False,
                 t_min: float = T_MIN, t_max: float = T_MAX, rho: float = RHO):
        weights = torch.ones(len(means)) if weights is None else weights
        if not len(means) == len(scales) == len(weights) or bool((scales <= 0).any()) or bool((weights <= 0).any()):
            raise PidistillError("gaussian: every component needs a mean, a positive scale and a positive weight")
        w, m = (weights / weights.sum()).double(), means.flatten(1).double()
        within = (w * scales.double() ** 2).sum()
        between = (w[:, None] * (m - (w[:, None] * m).sum(0)) ** 2).sum(0).mean()
        super().__init__(means.shape[1:], len(means) if conditional else 0, t_min=t_min, t_max=t_max, rho=rho,
                         sigma_data=math.sqrt(within + between))
        self.register_buffer("means", means)
        self.register_buffer("scales", scales)
        self.register_buffer("weights", w.to(means.dtype))

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute E[image | x] (B, *shape): the components' own D_k, weighted with their posterior probabilities."""
        m, flat, n = self.means.to(x.dtype).flatten(1), x.flatten(1), math.prod(self.shape)
        variance = self.scales.to(x.dtype) ** 2 + t[:, None] ** 2                        # (B, K)
        shrink = (self.scales.to(x.dtype) ** 2 / variance)[:, :, None]
        D = m + (flat[:, None] - m) * shrink                                            # (B, K, n)
        if labels is not None:
            return D[torch.arange(len(x), device=x.device), labels].reshape(x.shape)
        distance2 = (flat[:, None] - m).square().sum(2)                                 # (B, K)
        log_p = self.weights.to(x.dtype).log() - distance2 / (2 * variance) - n / 2 * variance.log()
        return (log_p.softmax(dim=1)[:, :, None] * D).sum(dim=1).reshape(x.shape)

    def exact(self, z: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Solve the ODE (6) from z (B, *shape) at T: mu + (z - mu) sqrt((s^2 + t^2)/(s^2 + T^2)), (B, *shape).

        t: a number, or as many as z has rows. labels: (B,) int64, the components; a single one needs none.
        Raises PidistillError for a mixture without labels, which has no closed form.
        """
        if len(self.means) > 1 and labels is None:
            raise PidistillError("gaussian: the trajectory of a mixture has no closed form; give labels")
        k = torch.zeros(len(z), dtype=torch.int64) if labels is None else labels
        mu, s = self.means.to(z.dtype)[k], self.scales.to(z.dtype)[k]
        ratio = ((s**2 + torch.as_tensor(t, dtype=z.dtype) ** 2) / (s**2 + self.t_max**2)).sqrt()
        return mu + (z - mu) * like(ratio, z)


def gaussian(rest: str) -> Denoiser:
    """Make the Gaussian or the mixture of a spec, such as `2`, `1x8x8,mean=0.2,std=0.5` or `2,modes=8,std=0.1`.

    rest: `SHAPE[,mean=M][,std=S][,modes=K][,classes]`. With `modes=K` the means lie on a circle of radius 1 in the first two
        coordinates; `classes` makes them classes.
    """
    shape_text, *settings = rest.split(",")
    usage = "gaussian: takes SHAPE[,mean=M][,std=S][,modes=K][,classes], such as gaussian:2,modes=8,std=0.1"
    options: dict[str, float] = {"mean": 0.0, "std": 0.5, "modes": 1}
    conditional = "classes" in settings
    try:
        shape = [int(n) for n in shape_text.split("x")]
        for setting in settings:
            if setting != "classes":
                key, value = setting.split("=")
                options[key] = {**{k: float for k in options}, "modes": int}[key](value)
    except (ValueError, KeyError):
        raise PidistillError(f"{usage}; got {rest!r}") from None
    modes, n = int(options["modes"]), math.prod(shape)
    possible = 1 <= modes <= 10**4 and (modes == 1 or n > 1) and 0 < options["std"] < math.inf
    possible = possible and math.isfinite(options["mean"])
    if min(shape) < 1 or n > 10**7 or not possible:
        raise PidistillError(f"{usage}; got {rest!r}")
    means = torch.full((modes, n), float(options["mean"]))
    if modes > 1:
        angle = 2 * math.pi * torch.arange(modes) / modes
        means[:, :2] += torch.stack([angle.cos(), angle.sin()], dim=1)
    return Gaussian(means.reshape(modes, *shape), torch.full((modes,), options["std"]), conditional=conditional)
