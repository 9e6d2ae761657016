"""A program of PyTorch's own, student.pt2: torch alone runs it, on any number of images."""

from __future__ import annotations

from pathlib import Path

import torch

from pidistill.jobs.export._program import trace
from pidistill.jobs.export._source import Source, Written

EXAMPLE_TORCH = """import torch

student = torch.export.load("student.pt2").module()
noise = torch.randn{noise_shape}
images = student(noise{labels})                        # {shape} in [-1, 1]
"""



def torch_export(source: Source, folder: Path, *, pixels: bool = False) -> Written:
    """Write student.pt2: (noise (B, C, H, W)[, labels (B,) int64]) -> images in [-1, 1].

    pixels: a second output, the images as uint8.
    """
    program = trace(source.make_step(pixels))
    path = folder / "student.pt2"
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(noise, labels):
        x = module(*(noise,) if labels is None else (noise, labels))
        return x[0] if pixels else x

    return Written(run, "pytorch", EXAMPLE_TORCH)
