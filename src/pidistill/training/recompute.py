"""Activation checkpointing: residual blocks keep their inputs alone, and are computed again for the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pidistill.core.errors import PidistillError
from pidistill.nets.edm2_unet import EDM2Block
from pidistill.nets.parts.transformer import InjectedBlock
from pidistill.nets.parts.unet import UNetBlock

Block = UNetBlock | EDM2Block | InjectedBlock  # two tensors -> one


def recompute_networks(networks: Iterable[nn.Module]) -> None:
    """Let every residual block of these networks forget what it computed until the backward pass.

    It costs about a quarter of a step's work more. Names, values and gradients stay, and nothing changes where no gradient
    is taken. Networks of diffusers do it by their own switch, and networks without such blocks stay as they are. Raises
    PidistillError if none has any. Forward-mode derivatives (torch.func.jvp) cannot be taken through it.
    """
    for block in find_recomputable_blocks(networks):
        if isinstance(block, Block):  # bound to the block, so that a copy's is bound to the copy
            block.forward = MethodType(_forward_recomputed, block)  # type: ignore[method-assign]
        else:
            block.enable_gradient_checkpointing()


def find_recomputable_blocks(networks: Iterable[nn.Module]) -> list[Any]:
    """Find the networks' residual blocks, or networks of diffusers. Raises PidistillError where there are none."""
    blocks = [module for network in networks for module in network.modules()
              if isinstance(module, Block) or hasattr(module, "enable_gradient_checkpointing")]
    if not blocks:
        raise PidistillError("train.recompute=true needs a network with residual blocks (song_unet, dhariwal_unet, "
                             "edm2_unet, equilibrium or diffusers'), and this one has none; leave it false")
    return blocks


def _forward_recomputed(block: Block, x: Tensor, emb: Tensor) -> Tensor:
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, x, emb)  # type: ignore[arg-type]
    random = block.training and getattr(block, "dropout", 0) > 0  # else there is no state of a generator to save and restore
    return checkpoint(forward, block, x, emb, use_reentrant=False, preserve_rng_state=random)
