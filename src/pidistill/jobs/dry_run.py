"""`pidistill distill --dry-run`: what a run will need, from networks without weights; none is read or made.

Counted: the floating-point operations of forward and backward pass of one step (2 a multiply-add, PyTorch's counter), on
the meta device, and the memory of a step of the run, see `footprint`. Estimated: time, see `SUSTAINED`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.files.image_set import ImageSet
from pidistill.jobs.build_objective import OF_TEACHER, build_objective
from pidistill.jobs.stages import list_stages, start_anew
from pidistill.models.denoiser import Denoiser
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Objective, find_objective
from pidistill.training.config import DistillConfig, list_averages
from pidistill.training.footprint import GPUEmulation, Rehearsal, draw_example, list_tensors
from pidistill.training.microbatch import USABLE, fit_microbatch
from pidistill.training.unit import hold_constant

# FLOP/s of one A100 that the paper's own timings imply with the operations counted here: tf32 from CIFAR-10, 0.713 s a
# step of 512 on 8 GPUs (Table 4); fp16 from ImageNet, 600k steps of 2048 in 197 h on 64 GPUs (Table 5). Float32 without
# TF32 cannot pass 19.5e12 there; 0.7 of that is an assumption, as is bf16 = fp16.
SUSTAINED = {"fp32": 13.7e12, "tf32": 35e12, "bf16": 44e12, "fp16": 44e12}

SAMPLES = 16   # traced at once; what does not grow with the batch weighs little
MEMORY = 80.0  # GB of a GPU, an A100's


def dry_run(config: DistillConfig, gpus: int = 1, memory: float = MEMORY) -> dict[str, Any]:
    """Estimate parameters, operations, memory of each GPU, checkpoint size and time of a run; gives facts to print.

    config: of the run.
    gpus: how many train it.
    memory: of each, in GB; train.microbatch=auto is what it holds.
    """
    if config.train.batch % gpus:
        raise PidistillError(f"train.batch must be a multiple of the GPUs, got {config.train.batch} and {gpus}")
    teacher = load_teacher(config.teacher, weights=False).to("meta")
    stages = list_stages(config)
    if len(stages) == 1:
        return describe_stage(config, teacher, gpus, memory)
    return {name: describe_stage(stage, teacher, gpus, memory) for name, stage in start_anew(stages).items()}


def describe_stage(config: DistillConfig, teacher: Denoiser, gpus: int, memory: float) -> dict[str, Any]:
    """Estimate what a single run needs. teacher: on the meta device. Other parameters: `dry_run`."""
    share = config.train.batch // gpus
    objective = build_objective(config, teacher, "meta", data=imagine_images(config, teacher))
    student = objective.networks["student"]
    operations = count_operations(objective)
    flops = sum(operations.values())
    micro = min(config.train.microbatch, share) if isinstance(config.train.microbatch, int) else share
    room = USABLE * memory * 1e9
    try:
        rehearse = Rehearsal(objective, config, gpu=True, processes=gpus)
        if config.train.microbatch == "auto":
            micro, _ = fit_microbatch(rehearse, share, room)
        needs = {name: describe_memory(sizes, room, memory) for name, sizes in
                 rehearse.by_phase(micro, micro < share).items()}
    except Exception as error:  # what cannot run without values, such as a class-conditional network inside jvp
        reason = {"together": f"not known: the step does not run without values ({type(error).__name__})"}
        needs = dict.fromkeys(operations, reason)
    total_flops = flops * config.train.batch
    seconds = total_flops / gpus / SUSTAINED[config.precision]
    single = len(operations) == 1
    return {
        "teacher": config.teacher,
        "teacher's parameters": count_parameters(teacher), "student's parameters": count_parameters(student),
        **{f"{name}'s parameters": count_parameters(net) for name, net in objective.networks.items() if net is not student},
        "batch": f"{config.train.batch} = {gpus} GPU{'s' * (gpus > 1)} x {math.ceil(share / micro)} x {micro}",
        "operations": {**({} if single else {f"a sample, {name}": f"{format_engineering(count)}FLOP a step"
                                             for name, count in operations.items()}),
                       "a sample": f"{format_engineering(flops)}FLOP", "a step": f"{format_engineering(total_flops)}FLOP",
                       "the run": f"{format_engineering(total_flops * config.train.steps)}FLOP "
                                  f"({config.train.steps:,} steps)"},
        f"memory of each GPU at its fullest, {micro} at a time": next(iter(needs.values())) if single else needs,
        "checkpoint": f"{format_bytes(estimate_checkpoint(objective, config))}; {config.checkpoint.keep} are kept",
        **({"profiles": f"{format_bytes(size)}; {math.ceil(config.train.steps / config.profiles.every)} are kept"}
           if (size := estimate_snapshot(objective, config)) else {}),
        "time": f"{format_engineering(seconds)}s a step, {format_duration(seconds * config.train.steps)} in all, on "
                f"{gpus} x A100 at {format_engineering(SUSTAINED[config.precision])}FLOP/s each",
    }


def imagine_images(config: DistillConfig, teacher: Denoiser) -> ImageSet | None:
    """Give an image in the place of a file of images that is not there yet; None where there is one, or none is named.

    config, teacher: of the run.
    """
    data, needed = config.data, find_objective(config.objective["name"]).needs
    if needed != "images" or data in (None, "digits", OF_TEACHER) or Path(data).exists():
        return None
    console.print(f"data={data} is not there; what is counted does not depend on it", soft_wrap=True, markup=False)
    labels = torch.tensor([teacher.num_classes - 1]) if teacher.num_classes else None
    blank = np.zeros((*teacher.shape[1:], teacher.shape[0]), np.float32)
    return ImageSet(1, teacher.shape, lambda index: blank, labels)


def describe_memory(sizes: dict[str, int], room: float, memory: float) -> dict[str, str]:
    """Describe the bytes that a phase takes, by what they are for. room: bytes that are free of `memory` GB."""
    needed = sum(sizes.values())
    return {**{label: format_bytes(size) for label, size in sizes.items()},
            "together": f"{format_bytes(needed)}, and what the kernels need beside; "
                        f"{'fits' if needed <= room else 'too much for'} {memory:g} GB"}


def estimate_checkpoint(objective: Objective, config: DistillConfig) -> int:
    """Estimate the bytes of a checkpoint: networks, averages, followers, and two moments of what each phase trains."""
    networks = objective.networks
    moments = [networks[name] for phase in objective.phases() for name in phase.trains for _ in range(2)]
    averages = [networks[name] for name in objective.averaged for _ in list_averages(config)]
    return sum(map(count_bytes, (*networks.values(), *averages, *objective.copies.values(), *moments)))


def estimate_snapshot(objective: Objective, config: DistillConfig) -> int:
    """Estimate the bytes of a snapshot of the profiles."""
    return sum(count_bytes(objective.networks[name]) for name in objective.averaged for _ in config.profiles.widths)


def estimate_gpu_hours(config: DistillConfig) -> float:
    """Estimate the hours of a single A100 that the run's steps take."""
    teacher = load_teacher(config.teacher, weights=False).to("meta")
    objective = build_objective(config, teacher, "meta", data=imagine_images(config, teacher))
    flops = sum(count_operations(objective).values())
    return flops * config.train.batch * config.train.steps / SUSTAINED[config.precision] / 3600


def format_engineering(value: float) -> str:
    """Format a number with the prefix of its power of 1000: 1.2e9 -> `1.2 G`."""
    power = max(-3, min(6, math.floor(math.log10(value) / 3)))
    unit = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}[power]
    return f"{value / 10 ** (3 * power):.4g} {unit}"


def format_duration(seconds: float) -> str:
    """Format seconds in the largest unit of which there are two."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def format_bytes(size: float) -> str:
    """Format bytes in the largest binary unit that gives at least 1."""
    power = min(4, int(math.log2(size) // 10)) if size >= 1 else 0
    return f"{size / 2 ** (10 * power):.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def count_operations(objective: Objective) -> dict[str, float]:
    """Count the FLOP of a single sample, forward and backward, by phase; what is not taken in every step counts in part."""
    found: dict[str, float] = {}
    for number, phase in enumerate(objective.phases()):
        for part in phase.parts:
            batch = {key: torch.empty((SAMPLES, *value.shape), dtype=value.dtype, device="meta")
                     for key, value in draw_example(part, number).items()}
            with FlopCounterMode(display=False) as counter, GPUEmulation(), hold_constant(objective, phase):
                part.loss(batch, 0).sum().backward()
            flops = counter.get_total_flops() / SAMPLES / phase.every * part.share
            found[phase.name] = found.get(phase.name, 0.0) + flops
    objective.forget()
    return found


def count_parameters(module: nn.Module) -> int:
    """Count the numbers in a module's parameters."""
    return sum(p.numel() for p in module.parameters())


def count_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in list_tensors(module))
