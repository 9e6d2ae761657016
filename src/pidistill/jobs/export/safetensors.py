"""The student's own folder, of one average and in a type of choice: config.json and safetensors, as `load_student` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pidistill.core.tensors import DTYPES, cast_tensors
from pidistill.files.folders import save_tensors
from pidistill.jobs.export._source import Runner, Source, Written
from pidistill.models.student import load_student

EXAMPLE_OWN = """import pidistill

student = pidistill.load_student("{place}")
images = student.sample(seeds=range(16))          # {shape} in [-1, 1], one network call each
"""


def safetensors(source: Source, folder: Path, *, precision: Literal["fp32", "fp16", "bf16"] = "fp32") -> Written:
    """Write config.json and model.safetensors (decoder.safetensors).

    precision: of the weights in the file; `load_student` computes in float32 whatever they are.
    """
    tensors, config = source.student.collect()
    for name, values in tensors.items():
        save_tensors(folder / f"{name}.safetensors", cast_tensors(values, DTYPES[precision]))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return Written(draw_with_student(folder), "pidistill", EXAMPLE_OWN)


def draw_with_student(folder: Path) -> Runner:
    """Give a runner of a student's folder."""
    student = load_student(folder)

    @torch.inference_mode()
    def run(noise: Tensor, labels: Tensor | None) -> Tensor:
        x = student.generate(noise * student.t_max, labels)
        return (student.decoder(x) if student.decoder else x).clip(-1, 1) if len(student.image_shape) == 3 else x

    return run
