"""An objective that no verb knows: a student and a critic by turns, a follower of the student, images.

It is `python:tests.adversary:Adversary` in a configuration; `Staged` trains with PID first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill import Follower, Objective, Phase, Setup
from pidistill.core.tensors import like


class Critic(nn.Module):
    """Images (B, ...) -> (B,): large where an image looks like one of the data."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]


class Adversary(Objective):
    """The critic tells data from the student's images; the student follows teacher and target, and pleases the critic.

    every: of the critic's phase. bad, at: the phase whose losses are infinite at this step.
    """

    needs = "images"

    def __init__(self, setup: Setup, *, every: int = 1, bad: str = "", at: int = -1, rate: float = 0.5):
        super().__init__({"student": setup.student, "critic": Critic(setup.student.shape)}, {"teacher": setup.teacher},
                         {"target": Follower("student", lambda step: rate)})
        assert setup.data is not None
        self.grid, self.data, self.shape, self.t_max = setup.grid, setup.data, setup.student.shape, setup.student.t_max
        self.every, self.bad, self.at = every, bad, at

    def phases(self) -> list[Phase]:
        return [Phase("critic", ("critic",), self.draw_both, self.judge, self.every,
                      {"name": "adam", "lr": 1e-3, "betas": (0.0, 0.99), "clip": 0.5}),
                Phase("student", ("student",), self.draw, self.please)]

    def draw(self, rng: np.random.Generator, step: int) -> dict[str, Any]:
        return {"i": np.int64(rng.integers(self.grid.points)),
                "z": rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.t_max)}

    def draw_both(self, rng: np.random.Generator, step: int) -> dict[str, Any]:
        return self.draw(rng, step) | {"y": self.data.sample(int(rng.integers(len(self.data))))["y"]}

    def judge(self, batch: dict[str, Tensor], step: int) -> Tensor:
        critic = self.networks["critic"]
        x = self.networks["student"](batch["z"], self.grid.t[-1].item())
        return F.softplus(critic(x)) + F.softplus(-critic(batch["y"])) + self.spoil("critic", step)

    def please(self, batch: dict[str, Tensor], step: int) -> Tensor:
        student, t = self.networks["student"], self.times(batch)
        x, end = student(batch["z"], t), student(batch["z"], self.grid.t[-1].item())
        to_teacher = (x - self.calls["teacher"](x, t, None).detach()) / (1 + like(t, x))
        to_target = end - self.copies["target"](batch["z"], self.grid.t[-1].item())
        return (to_teacher.square() + to_target.square()).flatten(1).mean(dim=1) + F.softplus(
            -self.networks["critic"](end)) + self.spoil("student", step)

    def spoil(self, phase: str, step: int) -> float:
        return math.inf if (phase, step) == (self.bad, self.at) else 0.0

    def times(self, batch: dict[str, Tensor]) -> Tensor:
        return self.grid.t.to(batch["i"].device)[batch["i"]].float()


class Staged(Adversary):
    """PID first, then the critic, from the student of before."""

    @classmethod
    def stages(cls, config: Any) -> list[Any]:
        first = config.model_copy(update={"objective": {"name": "pid"}, "data": None})
        start = config.student.model_copy(update={"init": "previous", "net": None})
        return [first, config.model_copy(update={"student": start})]
