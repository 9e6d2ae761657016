"""Networks F(x, c_noise, labels) as users bring them: with tied weights, views, statistics, counters, masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pidistill import Preconditioned

SIDE = 16  # numbers in a sample, (1, 4, 4)


class Plain(nn.Module):
    """A perceptron of samples (B, ...) of `SIDE` numbers and of the time, without classes.

    width: of its layers.
    """

    def __init__(self, width: int = SIDE):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(SIDE + 1, width), nn.Linear(width, width), nn.Linear(width, SIDE)

    def between(self, x: Tensor) -> Tensor:
        """Turn the second layer's output (B, width) into what the last layer gets."""
        return x

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        h = torch.cat([x.flatten(1), c_noise[:, None]], dim=1)
        h = self.second(nn.functional.silu(self.first(h)))
        return self.last(nn.functional.silu(self.between(h))).reshape(x.shape)


class Tied(Plain):
    """Two layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.last.weight = self.second.weight


class TiedTwice(Tied):
    """Three names of one weight, and two of one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(SIDE, SIDE)
        self.again.weight, self.again.bias = self.second.weight, self.second.bias

    def between(self, x: Tensor) -> Tensor:
        return self.again(x)


class Transposed(Plain):
    """The last layer's weight is a view of the second's, its transpose: another parameter in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.last.weight = nn.Parameter(self.second.weight.data.T)


class Sliced(Plain):
    """Two weights are parts of one memory, and do not overlap."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(2 * SIDE, SIDE) / math.sqrt(SIDE)
        self.second.weight, self.last.weight = nn.Parameter(whole[:SIDE]), nn.Parameter(whole[SIDE:])


class Normed(Plain):
    """Batch normalisation: statistics, and a counter that is an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(SIDE)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Counted(Plain):
    """Buffers that are replaced, changed behind their version, not saved, absent at first, and large.

    Nothing of it depends on the order of samples; the output is divided by what the buffers hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("codes", torch.ones(5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int32))
        self.register_buffer("passing", torch.ones(()), persistent=False)
        self.register_buffer("late", None)
        self.register_buffer("table", torch.ones(3, 5000))
        self.register_buffer("spread", torch.ones(1).expand(SIDE))  # one number that stands for many
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            level = x.detach().square().mean()
            self.size = 0.9 * self.size + 0.1 * level
            self.codes.data.mul_(0.9).add_(0.1 * level)
            self.passing.add_(level)
            self.late = level + torch.zeros(2)
            self.table.data.mul_(0.5).add_(level)
            self.calls += 1
        return x / (1 + self.size + self.codes.mean() + self.table.mean())


class Both(Counted):
    """Batch normalisation beside all these."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(SIDE)

    def between(self, x: Tensor) -> Tensor:
        return super().between(self.norm(x))


class Dropped(Plain):
    """Dropout in several forms."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.drop = nn.Sequential(nn.Dropout1d(rate), nn.AlphaDropout(rate), nn.Dropout(rate))

    def between(self, x: Tensor) -> Tensor:
        return self.drop(x)


class Frozen(Plain):
    """A weight that is not to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.second.weight.requires_grad_(False)


class Sparse(Plain):
    """A buffer that no file of weights can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("graph", torch.eye(3).to_sparse())


KINDS: dict[str, Callable[[], nn.Module]] = {kind.__name__: kind for kind in (
    Plain, Tied, TiedTwice, Transposed, Sliced, Normed, Counted, Dropped, Frozen)}


# As factories, and in teachers --------------------------------------------------------------------------------------------


def make_shaped(shape: tuple[int, ...], num_classes: int, scale: float = 1.0) -> nn.Module:
    """A factory that asks for the shape and the classes, and has an option."""
    net = Plain()
    net.told = (shape, num_classes, scale)
    return net


def make_wide(width: int = 24) -> nn.Module:
    return Plain(width)


def make_nothing() -> int:
    return 3


def fail() -> nn.Module:
    raise ValueError("no weights today\nsecond line")


def teacher_of(net: nn.Module | str, net_spec: str | dict | None = None, **facts: Any) -> Preconditioned:
    """A teacher of a network, or of one of the kinds above, without classes, as a user makes it."""
    if isinstance(net, str):
        torch.manual_seed(3)
        net = KINDS[net]()
    return Preconditioned(net, (1, 4, 4), net_spec=net_spec, t_min=0.01, t_max=20.0, sigma_data=0.5, **facts)


def make_teacher() -> Preconditioned:
    """`python:tests.own_nets:make_teacher`: its network has a name."""
    return teacher_of("Normed", "python:tests.own_nets:Normed")


def make_nameless_teacher() -> Preconditioned:
    """`python:tests.own_nets:make_nameless_teacher`: its network has none."""
    return teacher_of("Tied")
