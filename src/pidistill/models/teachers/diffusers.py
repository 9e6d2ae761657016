"""`diffusers:PATH_OR_REPO` is a pipeline of Hugging Face diffusers with a UNet2DModel or a DiT.

Its scheduler says what the network predicts and at which noise levels sigma = sqrt((1 - abar)/abar) it was trained; its
autoencoder, if there is one, decodes latents.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from pidistill.core.console import console
from pidistill.core.errors import PidistillError, words_of
from pidistill.files.reading import read_json, sha256
from pidistill.files.weights import Allowance, count_allowed_elements
from pidistill.models.decoder import Decoder
from pidistill.models.denoiser import Preconditioned
from pidistill.models.teachers._diffusers_pipeline import check_clock, check_network, choose_parts, read_decoder_config
from pidistill.models.teachers._diffusers_schedule import read_schedule
from pidistill.models.teachers._diffusers_weights import choose_weight_files, lacks_weights
from pidistill.models.teachers.base import build_network_teacher, split_path
from pidistill.nets._diffusers_keys import read_defaults
from pidistill.nets.diffusers_net import import_diffusers

FILES = ["model_index.json", "scheduler/*.json", "unet/*", "transformer/*", "vae/*", "vqvae/*",
         "scheduler_config.json", "config.json", "diffusion_pytorch_model*"]  # the last three: of old pipelines
IGNORED = ["*.msgpack", "*.ckpt", "*.h5", "*.fp16.*", "*.py"]


def diffusers(rest: str, *, weights: bool = True) -> Preconditioned:
    """Load a pipeline as a teacher. Raises PidistillError in one line.

    Only the configurations and weights (safetensors, or .bin read weights-only) are read; code that comes with a model is
    not.

    rest: `PATH_OR_REPO[,sigma_data=S]`. PATH is a folder that `save_pretrained` wrote, or an old one with all
        files beside model_index.json; a REPO of the Hugging Face hub is looked for in its local cache and else downloaded,
        which is said. sigma_data: of the data that the network sees, by default 0.5 for pixels and 1 for latents.
    weights: as in `load_teacher`.
    """
    name, options = parse_spec(rest)
    library = import_diffusers()
    folder = find_pipeline(name)
    index = read_json(folder / "model_index.json")
    parts = choose_parts(index, name)
    kind = parts.kind
    config_file = find_component_file(folder, parts.network, "config.json")
    config = read_json(config_file)
    whole = read_defaults(getattr(library, kind)) | config
    check_network(library, whole, kind, name)
    facts = read_pipeline_facts(library, folder, whole, parts.scheduler, name)
    decoder = None
    if parts.decoder:
        decoder = read_decoder_config(library, folder / parts.decoder / "config.json", facts["shape"][0], name)
    choose_sigma_data(facts, options.get("sigma_data"), 1.0 if decoder else 0.5)
    net: dict[str, Any] = {"name": "diffusers_net", "kind": kind, "config": config}
    if facts["preconditioning"] == "score":
        net["unit_range"] = True
    try:
        teacher = build_network_teacher(net, weights=False, **facts)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise PidistillError(f"{config_file} cannot be meant ({type(error).__name__}: {words_of(error)})") from None
    if weights:
        teacher.model.net, files = load_component(library, kind, config_file.parent, name)
        if parts.decoder:
            vae, _ = load_component(library, "AutoencoderKL", folder / parts.decoder, name)
            teacher.decoder = Decoder({"config": decoder}, vae)
        hashes = {path.name: sha256(path) for path in files}
        teacher.origin = {"file": name, "sha256": hashes, "left_out": [], "licence": "as the model's page says"}
    return teacher


def read_pipeline_facts(library: Any, folder: Path, config: dict[str, Any], scheduler: str | None,
                        name: str) -> dict[str, Any]:
    """Read the options of `Preconditioned` from the configurations of the scheduler and the network.

    library: diffusers. folder: of the pipeline. config: of the network, whole. scheduler: its class, by model_index.json.
    name: of the pipeline, for errors.
    """
    try:
        schedule = read_json(find_component_file(folder, "scheduler", "scheduler_config.json"))
        facts = read_schedule(library, schedule, name, scheduler)
        first = check_clock(config, facts["preconditioning"], name)
        if first:
            facts["t_min"] = facts["preconditioning"]["sigmas"][first]
            console.print(f"{name}: its network takes the logarithm of the step, and is not asked at step 0", soft_wrap=True)
        return facts | read_network_facts(config, name)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise PidistillError(f"{name}: its configurations cannot be meant ({type(error).__name__}: {words_of(error)})") \
            from None


def choose_sigma_data(facts: dict[str, Any], given: float | None, default: float) -> None:
    """Choose sigma_data of the teacher, in its facts: what the user gave, what the scheduler says, or the default.

    What the scheduler says stays in the formula, whatever is given: the network was trained with it.
    """
    trained = facts.get("sigma_data")
    if trained is not None and given is not None and given != trained:
        facts["preconditioning"] = {"name": facts["preconditioning"], "sigma_data": trained}
    facts["sigma_data"] = given or trained or default


def parse_spec(rest: str) -> tuple[str, dict[str, float]]:
    """Parse `NAME,key=number,...` into the name and the options. Raises PidistillError for other keys than the known."""
    name, pairs = split_path(rest)
    options: dict[str, float] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            options[key] = math.nan
        if key != "sigma_data" or not math.isfinite(options[key]) or options[key] <= 0:
            raise PidistillError("a diffusers teacher is diffusers:PATH_OR_REPO[,null=N][,guidance=W][,sigma_data=S], got "
                                 f"{rest!r}")
    return name, options


def find_pipeline(name: str) -> Path:
    """Find the pipeline's folder: a path, or a repository in the local cache, or one that is downloaded there."""
    path = Path(os.path.expanduser(name))
    if not name:  # which would be the current folder
        raise PidistillError("a diffusers teacher is diffusers:PATH_OR_REPO, got no name")
    if path.is_file():
        raise PidistillError(f"{path} is a file; a pipeline is the folder with model_index.json, diffusers:{path.parent}")
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise PidistillError(f"{path} holds no pipeline: model_index.json was expected, as save_pretrained writes it")
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise PidistillError(f"{name} is no folder, and no repository of the form OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
    except Exception:  # not in the cache: each version of the library says so with another class
        console.print(f"downloading {name} from the Hugging Face hub (configurations and weights)", soft_wrap=True)
    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns=IGNORED))
        if lacks_weights(folder):  # there may be variants alone
            folder = Path(snapshot_download(name, allow_patterns=FILES,
                                            ignore_patterns=[pattern for pattern in IGNORED if "fp16" not in pattern]))
        return folder
    except Exception as error:  # no network, no such repository, no permission
        raise PidistillError(f"cannot download {name} ({words_of(error)}); put the folder that save_pretrained wrote "
                             "anywhere (with model_index.json, scheduler/, unet/ or transformer/, and vae/ if it has one; "
                             "old ones have their files beside model_index.json) and name it: diffusers:FOLDER") from None


def find_component_file(folder: Path, component: str, file: str) -> Path:
    """Find a component's file: in its folder or, where there is none, beside model_index.json, as in diffusers."""
    at_root = not (folder / component).is_dir() and (folder / file).exists()
    return folder / file if at_root else folder / component / file


def load_component(library: Any, kind: str, folder: Path, name: str) -> tuple[torch.nn.Module, list[Path]]:
    """Load a model of diffusers with its weights, strictly, in float32; gives the files too. Raises PidistillError.

    library: diffusers. kind: the model's class. folder: with its config.json and weights. name: of the pipeline.
    """
    files, variant, safe = choose_weight_files(folder, f"{kind} of {name}")
    if "quantization_config" in read_json(folder / "config.json"):
        raise PidistillError(f"{folder}: its weights are quantised, by a library of its choice; save them in full")
    try:
        with Allowance(count_allowed_elements(*files), folder):
            model, info = getattr(library, kind).from_pretrained(
                str(folder), local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True,
                torch_dtype=torch.float32, variant=variant, use_safetensors=safe)
    except PidistillError:
        raise
    except Exception as error:  # missing, damaged or misshapen files end in almost any of them
        raise PidistillError(f"cannot read {kind} of {name}: {words_of(error)}") from None
    misfits = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if misfits:
        raise PidistillError(f"the weights in {folder} do not fit {kind}: {len(misfits)} missing, unknown or misshapen, "
                             f"first {misfits[0]}")
    return model.eval(), files


def read_network_facts(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Read shape, classes and null label from the network's configuration. name: of the pipeline, for errors."""
    size, channels = config.get("sample_size"), config.get("in_channels")
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2 or not isinstance(channels, int):
        raise PidistillError(f"{name}: the network's config.json does not say its sample_size and in_channels")
    classes, null = config.get("num_class_embeds") or 0, config.get("num_embeds_ada_norm")
    sizes = (channels, *sides, classes if null is None else null)
    if not all(type(n) is int and 0 <= n <= 10**6 for n in sizes) or min(sizes[:3]) < 1:
        raise PidistillError(f"{name}: channels, sides and classes of {str(sizes)[:80]} are impossible")
    facts: dict[str, Any] = {"shape": sizes[:3], "num_classes": sizes[3]}
    return facts if null is None else facts | {"null_label": null}
