"""Networks of Hugging Face diffusers, UNet2DModel and DiTTransformer2DModel, as raw networks F(x, c_noise, labels)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from pidistill.core.errors import PidistillError, explain
from pidistill.nets._diffusers_keys import NETWORK_KEYS, check_keys


class DiffusersNet(nn.Module):
    """A network of diffusers computes F(x, c_noise, labels), whose c_noise are its timesteps.

    (B, C, H, W), (B,), (B,) int64 or None -> (B, C or 2C, H, W). The weights keep diffusers' names, after `net.`;
    `frozen` names those that diffusers does not train, such as the frequencies of Fourier features.

    num_classes: of labels; 0 for an unconditional network.
    kind: name of diffusers' class.
    config: what diffusers wrote into its config.json.
    unit_range: whether the network knows images in [0, 1], so that it is given (x + 1)/2.

    A network with a learned embedding of steps is given the step that is nearest to c_noise. `needs_labels` says that a
    network with classes cannot be called without labels by diffusers: it is asked for class 0 then.
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0,
                 kind: Literal["UNet2DModel", "DiTTransformer2DModel"] = "UNet2DModel",
                 config: dict[str, Any] | None = None, unit_range: bool = False):
        super().__init__()
        options = {key: value for key, value in (config or {}).items() if not key.startswith("_")}
        self.net = build_from_diffusers(kind, options)
        self.conditional, self.unit_range = num_classes > 0, unit_range
        self.needs_labels = self.conditional
        self.whole_steps = isinstance(getattr(self.net, "time_proj", None), nn.Embedding)
        self.frozen = frozenset(name for name, p in self.named_parameters() if not p.requires_grad)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None and self.conditional:
            labels = c_noise.new_zeros(x.shape[0]).long()  # diffusers' conditional networks cannot do without
        x = (x + 1) / 2 if self.unit_range else x
        c_noise = c_noise.round().long() if self.whole_steps else c_noise
        labels = labels if self.conditional else None
        return self.net(x, c_noise.expand(x.shape[0]), class_labels=labels, return_dict=False)[0]


def build_from_diffusers(kind: str, config: dict[str, Any]) -> nn.Module:
    """Build the class `kind` of diffusers from its config.json, without the options that the class does not know.

    Raises PidistillError for a configuration that the class refuses, or with a value that is not understood here.
    """
    check_keys(f"diffusers' {kind}", config, NETWORK_KEYS[kind])
    model_class = getattr(import_diffusers(), kind)
    parameters = inspect.signature(model_class.__init__).parameters
    try:
        return model_class(**{key: value for key, value in config.items() if key in parameters})
    except PidistillError:
        raise
    except Exception as error:  # values that it does not expect end in almost any of them
        raise PidistillError(explain(f"diffusers' {kind} cannot be built", error)) from error


def import_diffusers() -> Any:
    """Import the library diffusers, or raise PidistillError with one line that says how to get it."""
    try:
        import diffusers
    except ImportError:
        raise PidistillError("this needs diffusers, which is not installed: pip install 'pidistill[diffusers]'") from None
    diffusers.utils.logging.set_verbosity_error()
    return diffusers
