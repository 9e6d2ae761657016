"""Files with the weights of a model of diffusers: diffusion_pytorch_model[.VARIANT][-PART].safetensors, or .bin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.files.safetensors_header import read_header
from pidistill.files.weights import check_packing

STEM = "diffusion_pytorch_model"
VARIANTS = ("ema", "fp32", "fp16", "bf16")  # which is taken where files without a variant are missing and several others lie


class WeightFiles(NamedTuple):
    """What diffusers is to read: the files, their variant (such as `fp16`, or None), and whether they are safetensors."""

    files: list[Path]
    variant: str | None
    safe: bool


def choose_weight_files(folder: Path, what: str) -> WeightFiles:
    """Choose the files to read weights from, as diffusers does, each checked before it is read.

    Where there are only variants, such as *.fp16.safetensors, one of them is chosen, which is said. Raises PidistillError.

    folder: of the model.
    what: whose weights they are, for messages.
    """
    for index in folder.glob(f"{STEM}*.index*.json"):
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name)
                                                  for name in names.values()):
            raise PidistillError(f"{index}: its parts must be names of files in the same folder")
    variants: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"{STEM}*")):
        if path.suffix in (".safetensors", ".bin"):
            variants.setdefault(parse_variant(path), []).append(path)
    if not variants:
        others = [path.name for path in sorted(folder.glob("*")) if path.suffix != ".json" and path.is_file()]
        raise PidistillError(f"cannot read {what}: {folder} has no {STEM}.safetensors or .bin" +
                             (f", only {', '.join(others[:3])}" if others else ""))
    variant = next((name for name in ("", *VARIANTS, *(variants if len(variants) == 1 else ())) if name in variants), None)
    if variant is None:
        raise PidistillError(f"{folder} has weights only as {', '.join(sorted(variants))}; rename those that you want to "
                             f"{STEM}.safetensors")
    safe = any(path.suffix == ".safetensors" for path in variants[variant])
    files = [path for path in variants[variant] if (path.suffix == ".safetensors") == safe]
    for path in files:
        read_header(path) if safe else check_packing(path)
    if variant:
        console.print(f"{what}: its weights are there only as {files[0].name}: those are read, and computed with in float32",
                      soft_wrap=True)
    return WeightFiles(files, variant or None, safe)


def parse_variant(path: Path) -> str:
    """Give the variant in the name of a file with weights, without the number of a part; empty where there is none."""
    return re.sub(r"-\d+-of-\d+", "", path.stem.removeprefix(STEM)).strip(".")


def lacks_weights(folder: Path) -> bool:
    """Tell whether a pipeline's folder has a network, in some component or beside model_index.json, without any weights."""
    homes = [path for path in (folder / "unet", folder / "transformer", folder / "vae", folder / "vqvae")
             if (path / "config.json").is_file()] or [folder]
    return not all(any(path.suffix in (".safetensors", ".bin") for path in home.glob(f"{STEM}*")) for home in homes)
