"""RAdam in one pass over the weights, without a value that comes to the host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.objectives.base import Phase
from pidistill.training.config import OptimizerConfig


class RAdam(torch.optim.Optimizer):
    """RAdam (Liu et al., 2020, Algorithm 2), the numbers of torch.optim.RAdam, by PyTorch's fused kernel for Adam.

    With bias corrections c1 = 1 - beta1^t and c2 = 1 - beta2^t a step is

        p -= lr/c1 m                                 where rho_t <= 5, in the first five steps,
        p -= lr r_t/c1 sqrt(c2) m / (sqrt(v) + eps)  later,

    which is Adam's with the rate lr r_t and eps/sqrt(c2). PyTorch's own RAdam makes a dozen passes over the weights, nearly
    a tenth of a training step on a CPU; this makes one (benchmarks/kernels.py).

    Where `found_inf` is set (a tensor, by GradScaler or whoever finds gradients that are not finite), 1 leaves weights,
    moments and t as they are. It is read on the device, after the first five steps.
    """

    _step_supports_amp_scaling = True  # GradScaler then sets found_inf instead of asking for it

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 2e-4, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        self.slow, self.t = True, 0  # slow: until t is known to be past the first steps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert self.grad_scale is None, "gradients are unscaled before"
        self.t += 1
        for group in self.param_groups:
            by_device: dict[torch.device, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_device.setdefault(p.device, []).append(p)
            for device, params in by_device.items():
                self._step(group, params, None if self.found_inf is None else self.found_inf.to(device, torch.float32))

    def _step(self, group: dict[str, Any], params: list[Tensor], found_inf: Tensor | None) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p),
                                 "exp_avg_sq": torch.zeros_like(p)}
        gradients: list[Tensor] = [p.grad for p in params if p.grad is not None]
        steps, means, squares = ([self.state[p][key] for p in params] for key in ("step", "exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        if self.slow:
            if found_inf is not None and found_inf.item():
                return
            found_inf = None
            self.t = t = int(steps[0].item()) + 1  # all weights are updated together
            if average_length(t, beta2) <= 5:
                torch._foreach_add_(steps, 1)
                if group["weight_decay"]:
                    gradients = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
                torch._foreach_lerp_(means, gradients, 1 - beta1)
                torch._foreach_mul_(squares, beta2)
                torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
                torch._foreach_add_(params, means, alpha=-group["lr"] / (1 - beta1**t))
                return
            self.slow = False
        torch._foreach_add_(steps, 1)
        # On a GPU the rate is a tensor: how many steps were left out is known to the device alone.
        rate: Any = group["lr"] * rectification(steps[0] if steps[0].is_cuda else steps[0].item(), beta2)
        eps = group["eps"] / math.sqrt(1 - beta2**self.t)  # they hardly matter here
        torch._fused_adam_(params, gradients, means, squares, [], steps, lr=rate, beta1=beta1, beta2=beta2,
                           weight_decay=group["weight_decay"], eps=eps, amsgrad=False, maximize=False, grad_scale=None,
                           found_inf=found_inf)
        if found_inf is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.slow = True
        for p, state in self.state.items():  # PyTorch leaves a scalar on the device that it was saved from
            state["step"] = state["step"].to(p.device, torch.float32)


def average_length(t: Any, beta2: float) -> Any:
    """rho_t: the length of a simple moving average that weighs like that of v after t steps. t: a number or a tensor."""
    return 2 / (1 - beta2) - 1 - 2 * t * beta2**t / (1 - beta2**t)


def rectification(t: Any, beta2: float) -> Any:
    """r_t: how much smaller than Adam's the step is, for rho_t > 4. t: a number or a tensor."""
    rho, limit = average_length(t, beta2), 2 / (1 - beta2) - 1
    return ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)) ** 0.5


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step number `step` of `steps`: a linear warm-up, then constant (the paper) or a half cosine to zero."""
    rate = config.lr * min(1.0, (step + 1) / (config.warmup + 1))
    return rate * 0.5 * (1 + math.cos(math.pi * step / steps)) if config.decay == "cosine" else rate


def for_phase(config: OptimizerConfig, phase: Phase) -> OptimizerConfig:
    """Give the settings of a phase: the run's, and what the phase has instead. Raises PidistillError for what is none."""
    try:
        return OptimizerConfig.model_validate(config.model_dump() | dict(phase.optimizer))
    except ValidationError as error:
        first = error.errors()[0]
        raise PidistillError(f"the phase {phase.name}: optimizer.{first['loc'][0]}: {first['msg'].lower()}") from None


def make_optimizer(config: OptimizerConfig, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser that the configuration names over these parameters."""
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.name == "adam":
        return torch.optim.Adam(parameters, fused=True, **options)
    return RAdam(parameters, **options)  # with weight decay 0: Appendix A.1
