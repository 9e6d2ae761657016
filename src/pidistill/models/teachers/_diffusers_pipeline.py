"""model_index.json names a pipeline's class and its components, as {"unet": ["diffusers", "UNet2DModel"], ...}."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.nets._diffusers_keys import NETWORK_KEYS, check_keys, read_defaults

DIFFUSERS_NETWORKS = {"UNet2DModel": "UNet2DModel", "DiTTransformer2DModel": "DiTTransformer2DModel",
                      "Transformer2DModel": "DiTTransformer2DModel"}  # the DiT's name before diffusers 0.29
PIPELINES = ("AudioDiffusionPipeline", "DDIMPipeline", "DDPMPipeline", "DiTPipeline", "LDMPipeline", "PNDMPipeline",
             "RePaintPipeline", "ScoreSdeVePipeline")  # of diffusers; others of the same parts are read too
REFUSED_PIPELINES = {
    "ConsistencyModelPipeline": "its network gives the ends of trajectories, no mean",
    "KarrasVePipeline": "it calls its network on (x + 1)/2 and sigma/2",
    "LDMSuperResolutionPipeline": "its network sees an image beside the noise"}
COMPONENTS = ("unet", "transformer", "scheduler", "vae", "vqvae")  # that are read
# That change no image: a spectrogram's sound, what filters pictures afterwards, names of classes.
HARMLESS_COMPONENTS = ("mel", "safety_checker", "feature_extractor", "image_processor", "tokenizer", "id2label",
                       "requires_safety_checker")


class Parts(NamedTuple):
    """What a pipeline is made of.

    network: its component's name, `unet` or `transformer`. kind: the network's class, by today's name.
    scheduler: its class. decoder: its component's name, `vae` or `vqvae`; None for a pipeline that works on pixels.
    """

    network: str
    kind: str
    scheduler: str | None
    decoder: str | None


def choose_parts(index: dict[str, Any], name: str) -> Parts:
    """Choose network, scheduler and decoder in model_index.json; refuses, by name, what is not understood.

    name: of the pipeline, for errors.
    """
    pipeline = index.get("_class_name", "pipeline")
    classes = {component: read_class_name(index, component) for component in COMPONENTS}
    networks = [component for component in ("unet", "transformer") if classes[component]]
    kind = classes[networks[0]] if networks else None
    if kind not in DIFFUSERS_NETWORKS:
        raise PidistillError(f"{name}: a {str(pipeline)[:60]} with {kind or 'no network'} cannot teach; "
                             "UNet2DModel and DiT can (models that need text cannot)")
    if isinstance(pipeline, str) and pipeline in REFUSED_PIPELINES:
        raise PidistillError(f"{name}: a {pipeline} cannot teach: {REFUSED_PIPELINES[pipeline]}")
    if "scheduler" not in index:
        raise PidistillError(f"{name}: the pipeline has no scheduler, which says what the network predicts")
    decoders = [component for component in ("vae", "vqvae") if classes[component]]
    for components in (networks, decoders):
        if len(components) > 1:
            raise PidistillError(f"{name}: it has {' and '.join(components)}, and does not say which is meant; remove one "
                                 "from model_index.json")
    for component, entry in index.items():
        if component not in (*COMPONENTS, *HARMLESS_COMPONENTS) and not component.startswith("_") \
                and entry not in (None, False, [None, None]):
            raise PidistillError(f"{name}: its {component}, {str(entry)[:60]}, is not understood; if images do not depend "
                                 "on it, remove it from model_index.json")
    decoder = decoders[0] if decoders else None
    if decoder and classes[decoder] != "AutoencoderKL":
        raise PidistillError(f"{name} decodes with a {classes[decoder]}; only AutoencoderKL can")
    return Parts(networks[0], DIFFUSERS_NETWORKS[kind], classes["scheduler"], decoder)


def read_class_name(index: dict[str, Any], component: str) -> str | None:
    """Read a component's class from model_index.json, {"unet": ["diffusers", "UNet2DModel"]}; None for [null, null].

    Classes of other libraries are refused: they would be code that comes with a model.
    """
    entry = index.get(component, [None, None])
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(item, str | None) for item in entry):
        raise PidistillError(f"model_index.json: {component} must be [LIBRARY, CLASS], got {str(entry)[:80]}")
    library, name = entry
    if name is not None and library is not None and library.partition(".")[0] != "diffusers":
        raise PidistillError(f"model_index.json: the {component} {name[:60]} is of {library[:60]}, not of diffusers, and "
                             "code of others is not run")
    return name


def say_unknown(keys: list[str], kind: str, library: Any, name: str) -> None:
    """Say which keys of a model's config.json are left out, as diffusers leaves out those that its class does not take."""
    for key in keys:
        console.print(f"{name}: {key} in its config.json is no key of {kind} in diffusers {library.__version__}: left out",
                      soft_wrap=True)


def check_network(library: Any, config: dict[str, Any], kind: str, name: str) -> None:
    """Refuse a network that cannot be a denoiser by itself, and say which keys of its config.json diffusers does not know.

    library: diffusers. config: of the network, whole. kind: its class. name: of the pipeline, for errors.
    """
    say_unknown(check_keys(f"{name}: {kind}", config, NETWORK_KEYS[kind]), kind, library, name)
    takes, gives = config.get("in_channels"), config.get("out_channels")
    gives = takes if gives is None and kind == "DiTTransformer2DModel" else gives
    if type(takes) is int and gives not in (takes, 2 * takes):
        raise PidistillError(f"{name}: its network takes {takes} channels and gives {str(gives)[:40]}; a denoiser gives as "
                             "many as it takes, or twice (with a variance): no image beside the noise, no other conditions")


def check_clock(config: dict[str, Any], preconditioning: str | dict[str, Any], name: str) -> int:
    """Refuse a network whose embedding of time cannot take what the scheduler tells it; gives the first step that it takes.

    config: of the network, whole. preconditioning: as `Preconditioned` takes it. name: of the pipeline, for errors.
    """
    embedding = config.get("time_embedding_type", "positional")
    spec = {"name": preconditioning} if isinstance(preconditioning, str) else preconditioning
    steps = len(spec.get("sigmas", ()))
    if embedding == "learned":
        known = config.get("num_train_timesteps")
        if not steps or type(known) is not int or known < steps:
            raise PidistillError(f"{name}: time_embedding_type=learned knows {str(known)[:40]} whole steps, its scheduler "
                                 f"asks for {steps or 'a continuous time'}")
    if embedding == "fourier" and spec["name"] in ("edm", "edm_v"):
        raise PidistillError(f"{name}: time_embedding_type=fourier takes the logarithm of the clock, ln(t)/4, which is "
                             "negative")
    return int(embedding == "fourier" and steps > 2)  # the logarithm of step 0 is no number


def read_decoder_config(library: Any, path: Path, channels: int, name: str) -> dict[str, Any]:
    """Read the config.json of a pipeline's AutoencoderKL, whose latents must be the network's. Raises PidistillError.

    library: diffusers. path: of the file. channels: C of the network. name: of the pipeline, for errors.
    """
    if not path.exists():
        raise PidistillError(f"{name}: its latents need the AutoencoderKL that is not in {path.parent.name}/")
    config = read_json(path)
    say_unknown(check_keys(f"{name}: AutoencoderKL", config, NETWORK_KEYS["AutoencoderKL"]), "AutoencoderKL", library, name)
    latents = (read_defaults(library.AutoencoderKL) | config)["latent_channels"]
    if latents != channels:
        raise PidistillError(f"{name}: its network works on {channels} channels, its AutoencoderKL on {str(latents)[:40]}")
    return config
