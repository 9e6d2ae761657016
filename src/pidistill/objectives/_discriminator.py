"""A small discriminator d(x, label), for the adversarial part of objectives that learn from data.

Images are halved by strided convolutions until 4 pixels are left; vectors go through three layers. A class enters as
projection, d = w h(x) + v(label) h(x) (Miyato and Koyama, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

LEAK = 0.2  # the slope of negative values
LAST = 4    # pixels of the smallest map, at most


class Discriminator(nn.Module):
    """The network tells data from samples: x (B, *shape) and labels (B,) int64, or None -> (B,), high for data.

    It has no normalisation, so that a sample's value depends on that sample alone.

    width: channels of the first layer; they double with every halving, up to eight times as many.
    num_classes: of labels; 0 for none.
    """

    def __init__(self, shape: Sequence[int], num_classes: int = 0, *, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        if len(shape) == 3:
            channels, size = width, min(shape[1:])
            layers.append(nn.Conv2d(shape[0], channels, 3, padding=1))
            while size > LAST:
                wider = min(2 * channels, 8 * width)
                layers.append(nn.Conv2d(channels, wider, 4, stride=2, padding=1))
                channels, size = wider, size // 2
        else:
            channels = 2 * width
            layers += [nn.Flatten(), *(nn.Linear(n, channels) for n in (math.prod(shape), channels, channels))]
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(channels, 1)
        self.classes = nn.Embedding(num_classes, channels) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = x
        for layer in self.layers:
            h = layer(h)
            h = h if isinstance(layer, nn.Flatten) else F.leaky_relu(h, LEAK)
        h = h.flatten(2).mean(dim=2) if h.ndim == 4 else h
        d = self.head(h)[:, 0]
        return d if self.classes is None or labels is None else d + (self.classes(labels) * h).sum(dim=1)
