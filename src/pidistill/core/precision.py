"""Mixed precision decides which number format a network's matrix products use.

PID multiplies the difference of two network outputs by about 30 at N = 250 and 120 at N = 1000, so rounding is amplified:
networks return float32, embed the time in float32, and every difference is taken in float32. `fp16` (10 bits of
mantissa) hurts about a seventh as much as `bf16` (7 bits), and needs loss scaling, which the trainer does; `tf32` has fp16's
mantissa and float32's range, on NVIDIA GPUs from Ampere on, and no effect elsewhere.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast, get_args

import torch

from pidistill.core.registry import suggest_choices

Autocast = Literal["fp32", "bf16", "fp16"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def parse_precision(text: str) -> Precision:
    """Check that a text names a precision. Raises PidistillError if it does not."""
    if text not in get_args(Precision):
        raise suggest_choices("precision", text, list(get_args(Precision)))
    return cast(Precision, text)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Make a context in which convolutions and matrix products run in the half type; fp32 and tf32 leave their type."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device
        return nullcontext()
    return torch.autocast(device.type, dtype=HALF.get(precision), enabled=precision in HALF)


def has_instructions(precision: Precision, device: torch.device) -> bool:
    """Say whether the hardware makes products in a half type: without, a CPU takes a hundred times as long as in float32."""
    if device.type != "cpu" or precision not in HALF:
        return True
    mkldnn = torch.ops.mkldnn
    return mkldnn._is_mkldnn_bf16_supported() if precision == "bf16" else mkldnn._is_mkldnn_fp16_supported()


def set_float32_products(precision: Precision) -> None:
    """Let NVIDIA's kernels round float32 inputs to TF32, except for `fp32`, where they must not.

    This holds for the whole program, since the backward pass needs it too. PyTorch's own default lets convolutions round
    and matrix products not; here `fp32` means float32. It is set through the older of PyTorch's two interfaces: PyTorch's
    compiler and its exporter read that one, which raises after the newer was used.
    """
    tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
