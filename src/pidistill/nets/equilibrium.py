"""Generative Equilibrium Transformer of Geng, Pokle & Kolter (2023): noise becomes an image by a fixed point, not by steps.

    n  = InjectionT(e, c)           e: patches of the noise with their positions, c: the class
    h* = f(h*, n, c)                f: a few blocks, whose attention is given n and c
    x  = patches of W h*

f is LN(EquilibriumT(h, n, c)), LN a layer normalisation. The paper iterates EquilibriumT alone, and normalises once, before
W. Its blocks add to h what depends on a normalised h, so that h grows by about the same length in every iteration, and
there is no fixed point; with LN in f there is one (the tests measure both), and more iterations than in training come nearer
to it. Weights are as many: the paper's five sizes have the numbers that it states. The code is our own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.registry import suggest_choices
from pidistill.core.tensors import one_hot, run_outside_autocast
from pidistill.nets.parts.initialisation import zeros
from pidistill.nets.parts.transformer import InjectedBlock, embed_positions
from pidistill.nets.parts.unet import Linear, check_image_size

Update = Callable[[Tensor], Tensor]  # f
LOOKBACK = 5  # iterates that Anderson's method looks back at


class Equilibrium(nn.Module):
    """The network computes F(x, c_noise, labels): (B, C, H, W), (B,), (B,) int64 or None -> (B, C, H, W).

    c_noise is not looked at, as in the paper: a one-step generator is asked at t = T alone. `timeless` says so: students
    that are asked at several times need another network. The defaults are the paper's smallest, GET-T, of 8.6 million
    weights; width 768, injection 1 and expansion 12 make GET-B.

    shape: of an image, (C, H, W); H and W must be multiples of patch.
    patch: patch x patch pixels are a token.
    width, heads: channels of a token, and heads of attention; width must be a multiple of heads and of 4.
    injection, injection_expansion: blocks that make n, and width of their hidden layers, in `width`.
    equilibrium, expansion: blocks of f, and width of their hidden layers, in `width`.
    iterations: of f in training; the paper's are 6.
    eval_iterations: in evaluation, by default as many. An attribute too, which may be set: more compute, same weights.
    unroll: the gradient goes through that many of the last iterations, in the paper all; those before give a constant.
    solver: of the iterations before the last `unroll`: `plain`, or `anderson`.
    damping: share of h that is kept in an iteration, 0 to below 1: h <- damping h + (1 - damping) f(h).
    """

    timeless = True
    positions: Tensor

    def __init__(self, shape: Sequence[int], *, num_classes: int = 0, patch: int = 2, width: int = 256, heads: int = 4,
                 injection: int = 6, injection_expansion: int = 4, equilibrium: int = 3, expansion: int = 6,
                 iterations: int = 6, eval_iterations: int | None = None, unroll: int = 6, solver: str = "plain",
                 damping: float = 0.0):
        super().__init__()
        counts = {"patch": patch, "width": width, "heads": heads, "injection": injection, "equilibrium": equilibrium,
                  "injection_expansion": injection_expansion, "expansion": expansion, "iterations": iterations,
                  "eval_iterations": iterations if eval_iterations is None else eval_iterations, "unroll": unroll}
        if wrong := [name for name, count in counts.items() if count < 1]:
            raise PidistillError(f"equilibrium: {wrong[0]} must be 1 or more, got {counts[wrong[0]]}")
        if width % heads or width % 4:
            raise PidistillError(f"equilibrium: width must be a multiple of heads ({heads}) and of 4, got {width}")
        if not 0 <= damping < 1:
            raise PidistillError(f"equilibrium: damping must be from 0 to below 1, got {damping}")
        if solver not in FIXED_POINT_SOLVERS:
            raise suggest_choices("equilibrium solver", solver, list(FIXED_POINT_SOLVERS))
        self.iterations, self.eval_iterations = iterations, counts["eval_iterations"]
        if solver != "plain" and unroll >= max(self.iterations, self.eval_iterations):
            raise PidistillError(f"equilibrium: {solver} comes before the last {unroll} iterations, and there are "
                                 f"{max(self.iterations, self.eval_iterations)}; set more of them, or a smaller unroll")
        channels, height = check_image_size("equilibrium", shape, patch)
        self.shape, self.num_classes, self.patch = tuple(shape), num_classes, patch
        self.unroll, self.damping, self.solve = unroll, damping, FIXED_POINT_SOLVERS[solver]
        pixels, places = channels * patch**2, embed_positions(height // patch, shape[2] // patch, width)
        self.register_buffer("positions", places, persistent=False)
        self.embed = Linear(pixels, width)
        self.map_label = Linear(num_classes, 3 * width, bias=False) if num_classes else None
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight, std=0.02)
        self.injection = nn.ModuleList(InjectedBlock(width, heads, injection_expansion) for _ in range(injection))
        self.inject = nn.ModuleList(Linear(width, 3 * width) for _ in range(equilibrium))
        self.equilibrium = nn.ModuleList(InjectedBlock(width, heads, expansion) for _ in range(equilibrium))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = Linear(width, pixels, init=zeros)

    def make_tokens(self, x: Tensor) -> Tensor:
        """Make tokens of patches, with their positions: (B, C, H, W) -> (B, N, D)."""
        return self.embed(F.pixel_unshuffle(x, self.patch).flatten(2).mT) + self.positions.to(x.dtype)

    def make_injections(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Give n (B, N, D), and what each block of f is given of n and the class, (B, N, 3 D)."""
        n = run_outside_autocast(self.make_tokens, x)
        c = x.new_zeros(x.shape[0], 3 * n.shape[2]) if self.map_label is None else self.map_label(
            one_hot(labels, self.num_classes, x))
        for block in self.injection:
            n = block(n, c[:, None])
        return n, [layer(n) + c[:, None] for layer in self.inject]

    def update(self, h: Tensor, injections: list[Tensor]) -> Tensor:
        """Compute f(h, n, c). h: (B, N, D), injections: a (B, N, 3 D) for each block -> (B, N, D)."""
        for block, u in zip(self.equilibrium, injections):
            h = block(h, u)
        return self.norm(h)

    def find_equilibrium(self, f: Update, h: Tensor) -> Tensor:
        """Iterate f from h, (B, N, D) -> the same; the gradient goes through the last `unroll` iterations alone."""
        total = self.iterations if self.training else self.eval_iterations
        unrolled = min(self.unroll, total)
        if unrolled < total:
            with torch.no_grad():
                h = self.solve(f, h, total - unrolled, self.damping)
        return iterate(f, h, unrolled, self.damping)

    def make_image(self, h: Tensor) -> Tensor:
        """Make pixels of tokens, (B, N, D) -> (B, C, H, W)."""
        _, height, width = self.shape
        y = self.out(h).mT.unflatten(2, (height // self.patch, width // self.patch))
        return F.pixel_shuffle(y, self.patch)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if x.shape[1:] != self.shape:
            raise PidistillError(f"equilibrium: the network is for images of shape {self.shape}, got {tuple(x.shape[1:])}")
        n, injections = self.make_injections(x, labels)
        h = self.find_equilibrium(functools.partial(self.update, injections=injections), torch.zeros_like(n))
        return run_outside_autocast(self.make_image, h)


# Solvers: (f, h, number of iterations, damping) -> h ---------------------------------------------------------------------


def iterate(f: Update, h: Tensor, steps: int, damping: float) -> Tensor:
    """Apply h <- damping h + (1 - damping) f(h) `steps` times. h: (B, ...)."""
    for _ in range(steps):
        h = torch.lerp(f(h), h, damping) if damping else f(h)
    return h


def accelerate(f: Update, h: Tensor, steps: int, damping: float) -> Tensor:
    """Apply Anderson's method (1965) `steps` times, each sample of h: (B, ...) by itself.

    h <- sum_i a_i (h_i + (1 - damping) g_i) over the last LOOKBACK iterates, with g_i = f(h_i) - h_i and the a,
    of sum 1, for which |sum_i a_i g_i| is smallest: a is as (g g^T)^-1 1.
    """
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(steps):
        points, residuals = [*points, h][-LOOKBACK:], [*residuals, f(h) - h][-LOOKBACK:]
        g = torch.stack(residuals, dim=1)
        a = run_outside_autocast(weigh_residuals, g.flatten(2)).to(h.dtype)
        mixed = torch.stack(points, dim=1) + (1 - damping) * g
        h = (mixed * a.reshape(*a.shape, *[1] * (h.ndim - 1))).sum(1)
    return h


def weigh_residuals(g: Tensor) -> Tensor:
    """Give the weights (B, m), of sum 1, with which residuals g: (B, m, n) cancel best."""
    gram = g @ g.mT
    eps = torch.finfo(g.dtype).eps
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + eps**2  # residuals of a solved sample are all zero
    a = torch.linalg.solve_ex(gram / scale + 10 * eps * torch.eye(g.shape[1], dtype=g.dtype, device=g.device),
                              g.new_ones(len(g), g.shape[1], 1))[0][..., 0]  # _ex: no wait for the device
    return a / a.sum(1, keepdim=True)


FIXED_POINT_SOLVERS: dict[str, Callable[[Update, Tensor, int, float], Tensor]] = {"plain": iterate, "anderson": accelerate}
