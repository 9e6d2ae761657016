"""`diffusers:PATH_OR_REPO` is a pipeline of Hugging Face diffusers with a UNet2DModel or a DiT.

Its scheduler says what the network predicts and at which noise levels sigma = sqrt((1 - abar)/abar) it was trained; its
autoencoder, if there is one, decodes latents.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import torch

from pidistill.core.console import console
from pidistill.core.errors import PidistillError, words_of
from pidistill.files.reading import read_json, sha256
from pidistill.files.safetensors_header import read_header
from pidistill.files.weights import Allowance, check_packing, count_allowed_elements
from pidistill.models.decoder import Decoder
from pidistill.models.denoiser import Preconditioned
from pidistill.models.grid import RHO, T_MAX, T_MIN
from pidistill.models.preconditioning import MOST_TRAINING_STEPS
from pidistill.models.teachers.base import build_network_teacher
from pidistill.nets.diffusers_net import import_diffusers

DIFFUSERS_NETWORKS = {"UNet2DModel": "UNet2DModel", "DiTTransformer2DModel": "DiTTransformer2DModel",
                      "Transformer2DModel": "DiTTransformer2DModel"}  # the DiT's name before diffusers 0.29
FILES = ["model_index.json", "scheduler/*.json", "unet/*", "transformer/*", "vae/*",
         "scheduler_config.json", "config.json", "diffusion_pytorch_model*"]  # the last three: of old pipelines
IGNORED = ["*.msgpack", "*.ckpt", "*.h5", "*.fp16.*", "*.py"]


def diffusers(rest: str, *, weights: bool = True) -> Preconditioned:
    """Load a pipeline as a teacher. Raises PidistillError in one line.

    Only the configurations and weights (safetensors, or .bin read weights-only) are read; code that comes with a model is
    not.

    rest: `PATH_OR_REPO[,guidance=W][,sigma_data=S]`. PATH is a folder that `save_pretrained` wrote, or an old one with all
        files beside model_index.json; a REPO of the Hugging Face hub is looked for in its local cache and else downloaded,
        which is said. guidance: classifier-free guidance, for a DiT. sigma_data: of the data that the network sees, by
        default 0.5 for pixels and 1 for latents.
    weights: as in `load_teacher`.
    """
    name, options = parse_spec(rest)
    library = import_diffusers()
    folder = find_pipeline(name)
    index = read_json(folder / "model_index.json")
    component, kind, latent = choose_network(index, name)
    config_file = find_component_file(folder, component, "config.json")
    config = read_json(config_file)
    facts = read_pipeline_facts(library, folder, config, name)
    facts["sigma_data"] = options.get("sigma_data", facts.get("sigma_data", 1.0 if latent else 0.5))
    if "guidance" in options:
        facts["guidance"] = options["guidance"]
    net: dict[str, Any] = {"name": "diffusers_net", "kind": kind, "config": config}
    if facts["preconditioning"] == "score":
        net["unit_range"] = True
    if latent and not (folder / "vae" / "config.json").exists():
        raise PidistillError(f"{name}: its latents need the {index.get('vae', index.get('vqvae'))} that is not in vae/")
    if "null_label" in facts and options.get("guidance", 1) == 1:
        del facts["null_label"]
    try:
        teacher = build_network_teacher(net, weights=False, **facts)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise PidistillError(f"{config_file} cannot be meant ({type(error).__name__}: {words_of(error)})") from None
    if weights:
        teacher.model.net = load_component(library, kind, config_file.parent, name)
        if latent:
            spec = {"config": read_json(folder / "vae" / "config.json")}
            teacher.decoder = Decoder(spec, load_component(library, "AutoencoderKL", folder / "vae", name))
        hashes = {path.name: sha256(path) for path in list_weight_files(config_file.parent)}
        teacher.origin = {"file": name, "sha256": hashes, "left_out": [], "licence": "as the model's page says"}
    return teacher


def choose_network(index: dict[str, Any], name: str) -> tuple[str, str, bool]:
    """Choose the network in model_index.json: its component, its class by today's name, and whether it works on latents.

    name: of the pipeline, for the error if it has no network that can teach, or no scheduler.
    """
    component = next((component for component in ("unet", "transformer") if component in index), None)
    classes = {key: read_class_name(index, key) for key in ("unet", "transformer", "vae", "vqvae")}
    kind = classes[component] if component else None
    if component is None or kind not in DIFFUSERS_NETWORKS:
        raise PidistillError(f"{name}: a {index.get('_class_name', 'pipeline')} with {kind or 'no network'} cannot teach; "
                             "UNet2DModel and DiT can (models that need text cannot)")
    if "scheduler" not in index:
        raise PidistillError(f"{name}: the pipeline has no scheduler, which says what the network predicts")
    return component, DIFFUSERS_NETWORKS[kind], classes["vae"] is not None or classes["vqvae"] is not None


def read_pipeline_facts(library: Any, folder: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    """Read the options of `Preconditioned` from the configurations of the scheduler and the network.

    library: diffusers. folder: of the pipeline. config: of the network. name: of the pipeline, for errors.
    """
    try:
        scheduler = read_json(find_component_file(folder, "scheduler", "scheduler_config.json"))
        return read_schedule(library, scheduler, name) | read_network_facts(config, name)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise PidistillError(f"{name}: its configurations cannot be meant ({type(error).__name__}: {words_of(error)})") \
            from None


def parse_spec(rest: str) -> tuple[str, dict[str, float]]:
    """Parse `NAME,key=number,...` into the name and the options. Raises PidistillError for other keys than the known."""
    name, *pairs = rest.split(",")
    options: dict[str, float] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            options[key] = math.nan
        if key not in ("guidance", "sigma_data") or not math.isfinite(options[key]) or options[key] <= 0:
            raise PidistillError(f"a diffusers teacher is diffusers:PATH_OR_REPO[,guidance=W][,sigma_data=S], got {rest!r}")
    return name, options


def find_pipeline(name: str) -> Path:
    """Find the pipeline's folder: a path, or a repository in the local cache, or one that is downloaded there."""
    path = Path(os.path.expanduser(name))
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
        return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns=IGNORED))
    except Exception as error:  # no network, no such repository, no permission
        raise PidistillError(f"cannot download {name} ({words_of(error)}); put the folder that save_pretrained wrote "
                             "anywhere (with model_index.json, scheduler/, unet/ or transformer/, and vae/ if it has one; "
                             "old ones have their files beside model_index.json) and name it: diffusers:FOLDER") from None


def find_component_file(folder: Path, component: str, file: str) -> Path:
    """Find a component's file: in its folder or, where there is none, beside model_index.json, as in diffusers."""
    at_root = not (folder / component).is_dir() and (folder / file).exists()
    return folder / file if at_root else folder / component / file


def load_component(library: Any, kind: str, folder: Path, name: str) -> torch.nn.Module:
    """Load a model of diffusers with its weights, strictly, in float32. Raises PidistillError in one line.

    library: diffusers. kind: the model's class. folder: with its config.json and weights. name: of the pipeline.
    """
    files = list_weight_files(folder)
    if "quantization_config" in read_json(folder / "config.json"):
        raise PidistillError(f"{folder}: its weights are quantised, by a library of its choice; save them in full")
    try:
        with Allowance(count_allowed_elements(*files), folder):
            model, info = getattr(library, kind).from_pretrained(
                str(folder), local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True,
                torch_dtype=torch.float32)
    except PidistillError:
        raise
    except Exception as error:  # missing, damaged or misshapen files end in almost any of them
        raise PidistillError(f"cannot read {kind} of {name}: {words_of(error)}") from None
    misfits = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if misfits:
        raise PidistillError(f"the weights in {folder} do not fit {kind}: {len(misfits)} missing, unknown or misshapen, "
                             f"first {misfits[0]}")
    return model.eval()


def list_weight_files(folder: Path) -> list[Path]:
    """List the files that diffusers may read weights from, each checked before it does.

    An index of shards must name files beside it. Raises PidistillError.
    """
    for index in folder.glob("*.index.json"):
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name)
                                                  for name in names.values()):
            raise PidistillError(f"{index}: its parts must be names of files in the same folder")
    files = sorted(path for path in folder.glob("diffusion_pytorch_model*") if path.suffix in (".safetensors", ".bin"))
    for path in files:
        if path.suffix == ".safetensors":
            read_header(path)
        else:
            check_packing(path)
    return files


def read_class_name(index: dict[str, Any], component: str) -> str | None:
    """Read a component's class from model_index.json, {"unet": ["diffusers", "UNet2DModel"]}; None for [null, null]."""
    entry = index.get(component, [None, None])
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(item, str | None) for item in entry):
        raise PidistillError(f"model_index.json: {component} must be [LIBRARY, CLASS], got {str(entry)[:80]}")
    return entry[1]


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


def read_schedule(library: Any, config: dict[str, Any], name: str) -> dict[str, Any]:
    """Read preconditioning and noise range from the scheduler's configuration. Raises PidistillError for unknown ones.

    library: diffusers. config: of the scheduler. name: of the pipeline, for errors and for what is left out of the schedule.
    """
    kind = str(config.get("_class_name", ""))
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_TRAINING_STEPS:
        raise PidistillError(f"{name}: num_train_timesteps must be from 1 to {MOST_TRAINING_STEPS}, got {str(steps)[:40]}")
    prediction = config.get("prediction_type", "epsilon")
    if kind.startswith("EDM"):
        edm = library.EDMEulerScheduler.from_config(config).config
        return {"preconditioning": "edm" if edm.prediction_type == "epsilon" else "edm_v", "t_min": edm.sigma_min,
                "t_max": edm.sigma_max, "sigma_data": edm.sigma_data, "rho": edm.rho}
    if kind.startswith("FlowMatch") or prediction == "flow_prediction":
        # Any s in (0, 1) was trained. s = 1 is t = inf; EDM's T = 80 is s = 0.988, where the data is 1/80 of the noise.
        return {"preconditioning": {"name": "flow", "scale": float(steps)}, "t_min": T_MIN, "t_max": T_MAX}
    if kind == "ScoreSdeVeScheduler":  # its images are in [0, 1], ours in [-1, 1]: levels are twice as large
        return {"preconditioning": "score", "t_min": 2 * config["sigma_min"], "t_max": 2 * config["sigma_max"]}
    if "beta_schedule" not in config and "trained_betas" not in config:
        raise PidistillError(f"{name}: the scheduler {kind or 'without a name'} is not known")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise PidistillError(f"{name}: a network that predicts {prediction!r} is not known")
    abar = library.DDPMScheduler.from_config(config).alphas_cumprod.double()
    sigmas = ((1 - abar) / abar).sqrt()
    usable = sigmas.isfinite() & (abar > 1e-7)
    if not usable.all():
        console.print(f"{name}: {int((~usable).sum())} steps of its schedule are pure noise (zero terminal SNR): left out",
                      soft_wrap=True)
    if int(usable.sum()) < 2:
        raise PidistillError(f"{name}: its schedule has no two usable steps")
    sigmas = sigmas[usable]
    return {"preconditioning": {"name": prediction, "sigmas": sigmas.tolist()}, "t_min": float(sigmas[0]),
            "t_max": float(sigmas[-1]), "rho": RHO}
