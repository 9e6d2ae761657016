"""`pidistill distill --dry-run`: what a run will need, from networks on the meta device; no weight is read or made.

Counted: the floating-point operations of forward and backward pass of one step (2 a multiply-add, PyTorch's counter),
and the bytes that autograd keeps for the backward pass, at the run's precision. Estimated: time, see `SUSTAINED`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pidistill.config import DistillConfig
from pidistill.distillation import build_objective
from pidistill.errors import PidistillError
from pidistill.objectives import Objective
from pidistill.precision import HALF, Precision
from pidistill.seeds import stream
from pidistill.teachers import load_teacher

# FLOP/s of one A100 that the paper's own timings imply with the operations counted here: tf32 from CIFAR-10, 0.713 s a
# step of 512 on 8 GPUs (Table 4); fp16 from ImageNet, 600k steps of 2048 in 197 h on 64 GPUs (Table 5). Float32 without
# TF32 cannot pass 19.5e12 there; 0.7 of that is an assumption, as is bf16 = fp16.
SUSTAINED = {"fp32": 13.7e12, "tf32": 35e12, "bf16": 44e12, "fp16": 44e12}

SAMPLES = 16  # traced at once; what does not grow with the batch weighs little


def dry_run(config: DistillConfig, gpus: int = 1) -> dict[str, Any]:
    """Parameters, operations, memory of each of `gpus` GPUs, checkpoint size and time of the run, to print."""
    if config.train.batch % gpus:
        raise PidistillError(f"train.batch must be a multiple of the GPUs, got {config.train.batch} and {gpus}")
    share = config.train.batch // gpus
    micro = min(config.train.microbatch or share, share)
    teacher = load_teacher(config.teacher, weights=False).to("meta")
    objective = build_objective(config, teacher, "meta")
    student = objective.networks["student"]
    flops = operations(objective)
    saved = activations(objective, config.precision)
    weights, rates = size(student), len(config.ema)
    frozen = [size(module) for module in objective.frozen]
    # RAdam and Adam keep two moments; every average is a copy; gradients are as large as the weights.
    training = weights * (4 + rates)
    total_flops = flops * config.train.batch
    seconds = total_flops / gpus / SUSTAINED[config.precision]
    peak = training + sum(frozen) + saved * micro
    return {
        "teacher": config.teacher,
        "teacher's parameters": count(teacher), "student's parameters": count(student),
        "batch": f"{config.train.batch} = {gpus} GPU{'s' * (gpus > 1)} x {math.ceil(share / micro)} x {micro}",
        "operations": {"a sample": f"{engineering(flops)}FLOP", "a step": f"{engineering(total_flops)}FLOP",
                       "the run": f"{engineering(total_flops * config.train.steps)}FLOP ({config.train.steps:,} steps)"},
        "memory of each GPU": {
            "student, gradients, optimiser": binary(4 * weights),
            f"{rates} EMA copies" if rates > 1 else "EMA copy": binary(rates * weights),
            "teacher": binary(frozen[0]), "distance": binary(sum(frozen[1:])),
            f"activations of {micro}": f"{binary(saved * micro)} ({binary(saved)} a sample)",
            "together": f"{binary(peak)}, and what the kernels need beside"},
        "checkpoint": f"{binary((3 + rates) * weights)}; {config.checkpoint.keep} are kept",
        "time": f"{engineering(seconds)}s a step, {duration(seconds * config.train.steps)} in all, on {gpus} x A100 at "
                f"{engineering(SUSTAINED[config.precision])}FLOP/s each",
    }


def gpu_hours(config: DistillConfig) -> float:
    """Hours of one A100 that the run's steps take."""
    teacher = load_teacher(config.teacher, weights=False).to("meta")
    flops = operations(build_objective(config, teacher, "meta"))
    return flops * config.train.batch * config.train.steps / SUSTAINED[config.precision] / 3600


def engineering(value: float) -> str:
    """1.2e9 -> `1.2 G`."""
    power = max(-3, min(6, math.floor(math.log10(value) / 3)))
    unit = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}[power]
    return f"{value / 10 ** (3 * power):.4g} {unit}"


def duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def binary(size: float) -> str:
    """Bytes in the largest binary unit that gives at least 1."""
    power = min(4, int(math.log2(size) // 10)) if size >= 1 else 0
    return f"{size / 2 ** (10 * power):.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


class FusedAttention(TorchFunctionMode):
    """Attention without its matrix in memory, as on a GPU; left alone, the meta device is given the plain formula."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention and torch.backends.cuda.mem_efficient_sdp_enabled():
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, True)[0]
        return function(*args, **(kwargs or {}))


def operations(objective: Objective) -> float:
    """FLOP of one sample, forward and backward."""
    with FlopCounterMode(display=False) as counter, FusedAttention():
        objective(batch_of(objective, SAMPLES, "meta")).sum().backward()
    return counter.get_total_flops() / SAMPLES


def activations(objective: Objective, precision: Precision) -> float:
    """Bytes a sample that autograd keeps after the forward pass: every storage once, weights apart.

    Which tensors a half precision keeps in which type is decided by autocast, which knows no meta device: there the
    pass runs on tensors that pretend to be on a GPU. Changes the objective's device then.
    """
    if precision not in HALF:
        return kept_bytes(objective, "meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (objective, *objective.frozen):
            module.to_empty(device="cuda")
        torch.set_autocast_dtype("cuda", HALF[precision])
        torch.set_autocast_enabled("cuda", True)
        try:
            return kept_bytes(objective, "cuda")
        finally:
            torch.set_autocast_enabled("cuda", False)


def kept_bytes(objective: Objective, device: str) -> float:
    own = {tensor.untyped_storage()._cdata for tensor in parameters_of([objective, *objective.frozen])}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor  # held, so that no other storage gets the same address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
        objective(batch_of(objective, SAMPLES, device))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / SAMPLES


def batch_of(objective: Objective, batch: int, device: str) -> dict[str, Tensor]:
    """A batch of the right shapes and types, without values."""
    sample = {key: torch.as_tensor(value) for key, value in objective.draw(stream(0)).items()}
    return {key: torch.empty((batch, *value.shape), dtype=value.dtype, device=device) for key, value in sample.items()}


def parameters_of(modules: Iterable[Any]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def size(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in parameters_of([module]))
