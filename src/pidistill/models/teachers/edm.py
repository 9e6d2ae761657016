"""`edm:` is a network of Karras et al. (2022, 2024), from NVIDIA's pickle, which is not executed, or plain weights."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.registry import suggest_choices
from pidistill.files.downloads import fetch_published
from pidistill.files.edm_pickle import EDMPickle, read_edm_pickle
from pidistill.files.folders import find_cache_folder
from pidistill.files.pickle_machine import shorten
from pidistill.files.reading import sha256
from pidistill.files.selection import load_chosen, split_entry
from pidistill.files.weights import load_weights
from pidistill.models.denoiser import Denoiser
from pidistill.models.grid import SIGMA_DATA, T_MAX, T_MIN
from pidistill.models.teachers.base import build_network_teacher, split_path
from pidistill.nets.song_unet import DDPMPP, NCSNPP


def _describe_song_unet(architecture: dict[str, Any], channel_mult: list[int], dropout: float) -> dict[str, Any]:
    """Describe a `song_unet` in JSON's types, 128 channels wide, with four blocks a level and attention at 16x16."""
    return {"name": "song_unet", "model_channels": 128, "channel_mult": channel_mult, "num_blocks": 4,
            "attn_resolutions": [16], "dropout": dropout,
            **architecture, "resample_filter": list(architecture["resample_filter"])}


def _list_checkpoints() -> dict[str, dict[str, Any]]:
    """List shape, classes and network of every published checkpoint (Karras et al., 2022, Table 7 and Appendix F).

    They were trained with non-leaking augmentation, whose input `map_augment` is zero when sampling: it is left out.
    """
    table: dict[str, dict[str, Any]] = {}
    for end, architecture in (("vp", DDPMPP), ("ve", NCSNPP)):
        for data, size, classes, mult, dropout in (
                ("cifar10-32x32-uncond", 32, 0, [2, 2, 2], 0.13), ("cifar10-32x32-cond", 32, 10, [2, 2, 2], 0.13),
                ("ffhq-64x64-uncond", 64, 0, [1, 2, 2, 2], 0.05), ("afhqv2-64x64-uncond", 64, 0, [1, 2, 2, 2], 0.25)):
            table[f"{data}-{end}"] = {"shape": (3, size, size), "num_classes": classes,
                                      "net": _describe_song_unet(architecture, mult, dropout)}
    table["imagenet-64x64-cond-adm"] = {
        "shape": (3, 64, 64), "num_classes": 1000,
        "net": {"name": "dhariwal_unet", "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
                "attn_resolutions": [32, 16, 8], "dropout": 0.1}}
    return table


def _list_edm2_checkpoints() -> dict[str, dict[str, Any]]:
    """List the same of EDM2, config G (Karras et al., 2024): ImageNet at 64x64, and latents of it at 512x512.

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


EDM2 = _list_edm2_checkpoints()
ADDRESS = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-{}.pkl"  # of EDM's pickles
LICENCES = {"edm": "NVIDIA's networks: CC BY-NC-SA 4.0 (not for commercial use)", "file": "as the file's source says"}
# Those on latents are left out: their students would need the VAE's decoder, and must not be clipped to [-1, 1].
CHECKPOINTS = _list_checkpoints() | {name: facts for name, facts in EDM2.items() if facts["shape"][0] == 3}


PRECONDITIONINGS = {  # NVIDIA's class -> formula, and the constants that it takes from the module
    "EDMPrecond": ("edm", ()), "Precond": ("edm", ()), "VPPrecond": ("vp", ("beta_d", "beta_min", "M")),
    "VEPrecond": ("ve", ()), "iDDPMPrecond": ("iddpm", ("C_1", "C_2", "M"))}
EDM_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # NVIDIA's class -> ours, and NVIDIA's defaults where ours differ
    "SongUNet": ("song_unet", {"channel_mult": [1, 2, 2, 2], "dropout": 0.1}), "DhariwalUNet": ("dhariwal_unet", {}),
    "UNet": ("edm2_unet", {})}
RENAMED = {"embedding_type": "embedding", "encoder_type": "encoder", "decoder_type": "decoder",
           "channels_per_head": "head_channels"}
# Attributes of NVIDIA's preconditionings that are read, or change nothing here; forks may add others.
KNOWN_ATTRIBUTES = ("img_resolution", "img_channels", "label_dim", "sigma_min", "sigma_max", "sigma_data", "beta_d",
                    "beta_min", "M", "C_1", "C_2", "use_fp16", "epsilon_t")
# What build_net knows by other means, and what only training needs.
NOT_OPTIONS = ("img_resolution", "in_channels", "img_channels", "label_dim", "augment_dim", "label_dropout")

LOGVAR = "logvar is left out, since it weighs the training loss alone"
UNUSED = {"logvar_fourier": LOGVAR, "logvar_linear": LOGVAR,  # of files: beginnings of names that sampling never uses
          "map_augment": "map_augment is left out, since sampling never augments"}


def edm(rest: str, *, weights: bool = True) -> Denoiser:
    """Load a network of EDM or EDM2. Raises PidistillError in one line.

    rest: `NAME`, `FILE.pkl` or `NAME,weights=FILE`, with `,entry=LABEL` behind it where a file has several weights that fit.
        NAME, such as `cifar10-32x32-uncond-vp`, is a network that NVIDIA published: its pickle, or NAME.safetensors or
        NAME.pt, from the cache folder, or the pickle downloaded there. FILE.pkl is any pickle of EDM's or EDM2's training
        code. weights=FILE is a checkpoint (.safetensors, .pt, .pth, .ckpt) with weights of the network or of the module
        around it, of which `choose_weights` chooses.
    weights: as in `load_teacher`.
    """
    name, pairs = split_path(rest)
    option = ",".join(pairs)
    path = Path(os.path.expanduser(name))
    if path.suffix == ".pkl" and not option:
        return load_pickle(path, weights)
    key, sign, file = option.partition("=")
    if option and (key not in ("weights", "entry") or not sign or not file or path.suffix == ".pkl"):
        raise PidistillError("an edm teacher is edm:NAME, edm:FILE.pkl or edm:NAME,weights=FILE, the first and the last "
                             f"with ,entry=LABEL behind it, got edm:{rest}")
    if name not in CHECKPOINTS:
        raise suggest_choices("edm network", name, [*CHECKPOINTS, "FILE.pkl"])
    if not weights:
        return build_network_teacher(**CHECKPOINTS[name], weights=False)
    path, entry = split_entry(file) if key == "weights" else (_find_weights(name), file or None)
    if path.suffix == ".pkl":
        if entry:
            raise PidistillError(f"{path}: of a pickle the network under `ema` is read; leave entry={entry} out")
        return load_pickle(path, licence=LICENCES["edm"])
    teacher = build_network_teacher(**CHECKPOINTS[name])
    choice = load_chosen(teacher.model, path, f"the network of edm:{name}", entry=entry, own=("", "model", "unet"),
                         unused=UNUSED, constants=("resample_filter",))
    return _record_origin(teacher, path, choice.sentences, LICENCES["edm" if key != "weights" else "file"],
                          entry=choice.entry)


def load_pickle(path: Path, weights: bool = True, licence: str = LICENCES["file"]) -> Denoiser:
    """Load a teacher from a pickle of EDM or EDM2, nothing of which is executed; every weight is accounted for.

    weights: as in `load_teacher`. licence: what the teacher's origin says of it. Raises PidistillError in one line.
    """
    file = read_edm_pickle(path)
    if file.encoder not in (None, "StandardRGBEncoder"):
        raise PidistillError(f"{path}: the network works on latents ({file.encoder[:40]}), whose decoder is not in the file")
    try:
        facts, net = interpret(file)
    except KeyError as error:
        raise PidistillError(f"cannot read {path}: its {file.class_name} does not say its {error.args[0]}") from None
    try:
        teacher = build_network_teacher(net, weights=weights, file=path, **facts)
    except (PidistillError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise PidistillError(f"cannot build the network of {path}: {error}") from None
    for key in sorted(file.attributes.keys() - {*KNOWN_ATTRIBUTES}):
        if file.attributes[key] is None:
            continue
        console.print(f"{path.name}: {key}={str(file.attributes[key])[:40]} of its {file.class_name} is not NVIDIA's, and "
                      "is not read", soft_wrap=True)
    if not weights:
        return teacher
    tensors, left_out = _select_weights({k: v for k, v in file.tensors.items() if k != "u"})
    load_weights(teacher.model, {k: v.float() for k, v in tensors.items()}, path, file.class_name)
    if file.entries and (len(file.entries) > 1 or file.entries[0] != "ema"):
        others = f"not from {shorten(file.entries[1:])}" if len(file.entries) > 1 else "which may be no average"
        left_out.insert(0, f"weights are taken from {shorten(file.entries[0])}, {others}")
    for sentence in left_out:
        console.print(f"{path.name}: {sentence}", soft_wrap=True)
    return _record_origin(teacher, path, left_out, licence)


def interpret(file: EDMPickle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Interpret a pickle: facts of the teacher, and its network {"name": ..., options}.

    Raises KeyError, with its name, for a fact that is missing, and PidistillError for what is not known.
    """
    if file.class_name not in PRECONDITIONINGS:
        raise suggest_choices("preconditioning", file.class_name[:40], list(PRECONDITIONINGS))
    if file.network["class_name"] not in EDM_NETWORKS:
        raise suggest_choices("network", str(file.network["class_name"])[:40], list(EDM_NETWORKS))
    if len(file.network["args"]) > 4:  # resolution, channels in and out, classes: what is known by other means
        raise PidistillError(f"its {file.network['class_name']} was given options without names, which are not read")
    a = file.attributes
    name, constants = PRECONDITIONINGS[file.class_name]
    preconditioning = {"name": name, **{key: a[key] for key in constants}} if constants else name
    size, channels = a["img_resolution"], a["img_channels"]
    if not all(type(n) is int and 0 < n <= 4096 for n in (size, channels)) or type(a["label_dim"]) is not int:
        raise PidistillError("its image size is impossible")
    for key, allowed in (("in_channels", (channels,)), ("out_channels", (channels, 2 * channels))):
        if file.network["kwargs"].get(key, channels) not in allowed:
            raise PidistillError(f"its network has {key}={str(file.network['kwargs'][key])[:40]} for images of {channels}: "
                                 "no image beside the noise is known, and no other conditions")
    # EDM samples all of them from 80 to 0.002, where the network reaches so far.
    facts = {"shape": (channels, size, size), "num_classes": a["label_dim"], "preconditioning": preconditioning,
             "t_min": max(T_MIN, a.get("sigma_min", 0)), "t_max": min(T_MAX, a.get("sigma_max", math.inf)),
             "sigma_data": a.get("sigma_data", SIGMA_DATA)}
    if a["label_dim"] and file.network["kwargs"].get("label_dropout"):  # trained without labels at times
        facts["null_label"] = "none"
    kind, defaults = EDM_NETWORKS[file.network["class_name"]]
    options = defaults | {RENAMED.get(key, key): value for key, value in file.network["kwargs"].items()
                          if key not in NOT_OPTIONS}
    if options.get("out_channels") == channels:
        del options["out_channels"]
    return facts, {"name": kind, **options}


def _find_weights(name: str) -> Path:
    """Find the cache folder's file for this network, or download it there."""
    for path in (find_cache_folder() / f"{name}.safetensors", find_cache_folder() / f"{name}.pt"):
        if path.exists():
            return path
    if name in EDM2:
        raise PidistillError(f"edm:{name} needs weights: put the network's state_dict() as {name}.safetensors or {name}.pt "
                             f"into {find_cache_folder()}, or name NVIDIA's pickle: edm:FILE.pkl")
    return fetch_published(ADDRESS.format(name), f"edm:{name}", f"edm:{name},weights=FILE or edm:FILE.pkl",
                           find_cache_folder())


def _select_weights(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Select the weights of the network F, under its own names, of a pickle; also say what was left out."""
    inner = {key.partition(".")[2] if key.startswith(("model.", "unet.")) else key: value for key, value in state.items()}
    left_out = {sentence: None for key, sentence in UNUSED.items() if any(name.startswith(key) for name in inner)}
    return {key: value for key, value in inner.items() if not key.startswith(tuple(UNUSED))}, list(left_out)


def _record_origin(teacher: Denoiser, path: Path, left_out: list[str], licence: str, **facts: Any) -> Denoiser:
    """Record a file's name, hash and licence, and what was said of it, and give the teacher."""
    teacher.origin = {"file": path.name, "sha256": sha256(path), "licence": licence, "left_out": left_out, **facts}
    return teacher
