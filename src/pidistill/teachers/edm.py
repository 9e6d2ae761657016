"""`edm:NAME`: the networks that Karras et al. (2022, 2024) published, with weights from a plain state dictionary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import cache_folder, load_weights, read_state_dict
from pidistill.nets.song_unet import DDPMPP, NCSNPP
from pidistill.plugins import choices
from pidistill.progress import console
from pidistill.teachers import network_teacher


def _song(architecture: dict[str, Any], channel_mult: list[int], dropout: float) -> dict[str, Any]:
    """A `song_unet` in JSON's types, 128 channels wide, four blocks a level, attention at 16x16."""
    return {"name": "song_unet", "model_channels": 128, "channel_mult": channel_mult, "num_blocks": 4,
            "attn_resolutions": [16], "dropout": dropout,
            **architecture, "resample_filter": list(architecture["resample_filter"])}


def _published() -> dict[str, dict[str, Any]]:
    """shape, classes and network of every published checkpoint (Karras et al., 2022, Table 7 and Appendix F).

    They were trained with non-leaking augmentation, whose input `map_augment` is zero when sampling: it is left out.
    """
    table: dict[str, dict[str, Any]] = {}
    for end, architecture in (("vp", DDPMPP), ("ve", NCSNPP)):
        for data, size, classes, mult, dropout in (
                ("cifar10-32x32-uncond", 32, 0, [2, 2, 2], 0.13), ("cifar10-32x32-cond", 32, 10, [2, 2, 2], 0.13),
                ("ffhq-64x64-uncond", 64, 0, [1, 2, 2, 2], 0.05), ("afhqv2-64x64-uncond", 64, 0, [1, 2, 2, 2], 0.25)):
            table[f"{data}-{end}"] = {"shape": (3, size, size), "num_classes": classes,
                                      "net": _song(architecture, mult, dropout)}
    table["imagenet-64x64-cond-adm"] = {
        "shape": (3, 64, 64), "num_classes": 1000,
        "net": {"name": "dhariwal_unet", "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
                "attn_resolutions": [32, 16, 8], "dropout": 0.1}}
    return table


def _published_edm2() -> dict[str, dict[str, Any]]:
    """The same for EDM2, config G (Karras et al., 2024): ImageNet at 64x64, and latents of it at 512x512.

    The sizes differ in width, and from M on in dropout.
    """
    widths = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
    table: dict[str, dict[str, Any]] = {}
    for data, channels, sizes in (("img64", 3, ("s", "m", "l", "xl")), ("img512", 4, tuple(widths))):
        for size in sizes:
            net = {"name": "edm2_unet", "model_channels": widths[size], "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
                   "attn_resolutions": [16, 8], "dropout": 0.0 if size in ("xs", "s") else 0.1}
            table[f"edm2-{data}-{size}"] = {"shape": (channels, 64, 64), "num_classes": 1000, "net": net}
    return table


EDM2 = _published_edm2()
# Those on latents are left out: their students would need the VAE's decoder, and must not be clipped to [-1, 1].
PUBLISHED = _published() | {name: facts for name, facts in EDM2.items() if facts["shape"][0] == 3}


def edm(rest: str, *, weights: bool = True) -> Denoiser:
    """rest: `NAME[,weights=FILE]`, such as `cifar10-32x32-uncond-vp,weights=cifar.pt`.

    FILE is a state dictionary of the network or of the module around it (names with `model.` before them, or `unet.` in
    EDM2). Without FILE it is NAME.safetensors or NAME.pt in the cache folder. NVIDIA's `.pkl` itself is not read.
    """
    name, _, option = rest.partition(",")
    if name not in PUBLISHED:
        raise choices("edm network", name, list(PUBLISHED))
    key, sign, given = option.partition("=")
    if option and (key != "weights" or not sign or not given):
        raise PidistillError(f"an edm teacher is edm:NAME[,weights=FILE], got edm:{rest}")
    teacher = network_teacher(**PUBLISHED[name], weights=weights)
    if weights:
        _load(teacher.model, Path(os.path.expanduser(given)) if given else _cached(name), name)
    return teacher


def _cached(name: str) -> Path:
    """The cache folder's file for this network."""
    for path in (cache_folder() / f"{name}.safetensors", cache_folder() / f"{name}.pt"):
        if path.exists():
            return path
    raise PidistillError(f"edm:{name} needs weights: put the network's state_dict() as {name}.safetensors or {name}.pt "
                         f"into {cache_folder()}, or say edm:{name},weights=FILE (NVIDIA's .pkl itself is not read by "
                         "this version)")


def _load(net: nn.Module, path: Path, name: str) -> None:
    """Weights of the network F, strictly, but for the layers of training alone: augmentation, and EDM2's loss weights."""
    if path.suffix == ".pkl":
        raise PidistillError(f"{path}: NVIDIA's .pkl is not read by this version; save the network's state_dict() as "
                             ".safetensors or .pt")
    state = read_state_dict(path)
    kept = {key: value for key, value in state.items() if not key.startswith(("logvar_fourier.", "logvar_linear."))}
    left_out = ["logvar is left out, since it weighs the training loss alone"] if len(kept) < len(state) else []
    for prefix in ("model.", "unet."):
        if kept and all(key.startswith(prefix) for key in kept):
            kept = {key.removeprefix(prefix): value for key, value in kept.items()}
    if any(key.startswith("map_augment.") for key in kept):
        kept = {key: value for key, value in kept.items() if not key.startswith("map_augment.")}
        left_out.append("map_augment is left out, since sampling never augments")
    load_weights(net, kept, path, f"edm:{name}")
    for what in left_out:
        console.print(f"{path.name}: {what}", soft_wrap=True)
