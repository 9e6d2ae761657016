"""What a run agrees on and builds before its first step."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from pidistill.core.console import console


def agreed(accelerator: Accelerator, found: tuple[int, str]) -> int:
    """The smallest microbatch that a process found for itself, said once."""
    micro = int(accelerator.gather(torch.tensor([found[0]], device=accelerator.device)).min())
    if accelerator.is_main_process:
        console.print(f"{found[1]}" if micro == found[0] else f"{found[1]}; another process has room for {micro}")
    return micro
