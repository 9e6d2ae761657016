"""Networks of Hugging Face diffusers as F(x, c_noise, labels): UNet2DModel and DiTTransformer2DModel."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from pidistill.errors import PidistillError


class DiffusersNet(nn.Module):
    """F(x, c_noise, labels): (B, C, H, W), (B,) timesteps, (B,) int64 or None -> (B, C or 2C, H, W).

    kind: the class. config: what diffusers wrote into its config.json. unit_range: the network knows images in [0, 1], so
    that it is given (x + 1)/2. The weights keep diffusers' names, after `net.`. frozen: those that diffusers does not train,
    such as the frequencies of Fourier features.
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0,
                 kind: Literal["UNet2DModel", "DiTTransformer2DModel"] = "UNet2DModel",
                 config: dict[str, Any] | None = None, unit_range: bool = False):
        super().__init__()
        diffusers = import_diffusers()
        options = {key: value for key, value in (config or {}).items() if not key.startswith("_")}
        known = inspect.signature(getattr(diffusers, kind).__init__).parameters
        try:
            self.net = getattr(diffusers, kind)(**{key: value for key, value in options.items() if key in known})
        except (TypeError, KeyError) as error:
            raise PidistillError(f"diffusers' {kind} cannot be built: {str(error).splitlines()[0]}") from None
        self.conditional, self.unit_range = num_classes > 0, unit_range
        self.frozen = frozenset(name for name, p in self.named_parameters() if not p.requires_grad)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None and self.conditional:
            labels = c_noise.new_zeros(len(x)).long()  # diffusers' conditional networks cannot do without
        x = (x + 1) / 2 if self.unit_range else x
        return self.net(x, c_noise.expand(len(x)), class_labels=labels if self.conditional else None, return_dict=False)[0]


def import_diffusers() -> Any:
    """The library, or one line that says how to get it."""
    try:
        import diffusers
    except ImportError:
        raise PidistillError("this needs diffusers, which is not installed: pip install 'pidistill[diffusers]'") from None
    diffusers.utils.logging.set_verbosity_error()
    return diffusers
