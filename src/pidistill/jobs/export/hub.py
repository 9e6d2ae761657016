"""A folder for the Hugging Face hub: config.json and model.safetensors, as `PyTorchModelHubMixin` lays them out.

`load_student("hf:OWNER/NAME")` reads it back, weights-only.
"""

from __future__ import annotations

from pathlib import Path

from pidistill.jobs.export._source import Source, Written
from pidistill.jobs.export.safetensors import safetensors


def hub(source: Source, folder: Path) -> Written:
    """Write config.json and model.safetensors (decoder.safetensors); the model card is README.md, as of every format."""
    return safetensors(source, folder)
