"""Students of every kind that is exported: tiny, with random weights, of which every formula can be checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pidistill.core.seeds import labels_of, noise
from pidistill.jobs.export.base import export
from pidistill.models.decoder import Decoder
from pidistill.models.student import Student
from pidistill.nets.base import build_net
from tests.helpers import NET, shake
from tests.models.test_preconditioning import SPECS

SIDE = 8
SEEDS = range(70)
UNET = {"sample_size": SIDE, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [8, 16],
        "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 8}
DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1,
       "sample_size": SIDE, "patch_size": 2, "num_embeds_ada_norm": 4}
VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8, 8], "norm_num_groups": 4,
       "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "sample_size": 16,
       "scaling_factor": 0.3}


def unet_spec(classes: int = 0, **options) -> dict:
    """The description of a UNet2DModel."""
    unit_range = {key: options.pop(key) for key in ("unit_range",) if key in options}
    classes_of = {"num_class_embeds": classes} if classes else {}
    return {"name": "diffusers_net", "kind": "UNet2DModel", "config": UNET | classes_of | options, **unit_range}


def make(spec: dict, shape=(1, SIDE, SIDE), classes: int = 0, labels: int | None = None, t_max: float = 80.0,
         scale: float = 0.05, **options) -> Student:
    """A student of a network with random weights. labels: that its network knows, if they are more than the classes."""
    torch.manual_seed(0)
    net = shake(build_net(spec, shape, classes if labels is None else labels), scale=scale)
    facts = {"shape": shape, "num_classes": classes, "t_min": 0.02, "t_max": t_max, "sigma_data": 0.5, "rho": 7.0}
    return Student(net, spec, facts, **options).eval().requires_grad_(False)


def make_latent() -> Student:
    """A DiT in a latent space, with a label for no class after the others."""
    spec = {"name": "diffusers_net", "kind": "DiTTransformer2DModel", "config": DIT}
    torch.manual_seed(1)
    decoder = Decoder({"config": VAE})
    return make(spec, (4, SIDE, SIDE), 3, 4, 60.0, preconditioning=SPECS["epsilon"], decoder=decoder, null_label=3)


# Held by diffusers' own pipeline.
STOCK = {
    "epsilon": lambda: make(unet_spec(), preconditioning=SPECS["epsilon"]),
    "epsilon, classes": lambda: make(unet_spec(3), classes=3, preconditioning=SPECS["epsilon"]),
    "v": lambda: make(unet_spec(), preconditioning=SPECS["v_prediction"]),
    "v, classes": lambda: make(unet_spec(3), classes=3, preconditioning=SPECS["v_prediction"]),
    "edm": lambda: make(unet_spec(), preconditioning="edm"),
    "edm, classes": lambda: make(unet_spec(3), classes=3, preconditioning="edm"),
    "edm_v": lambda: make(unet_spec(), preconditioning="edm_v"),
    "edm, consistency": lambda: make(unet_spec(), preconditioning="edm", form="consistency"),
    "edm, signal": lambda: make(unet_spec(), preconditioning="edm", form="signal"),
    "sample, direct": lambda: make(unet_spec(), preconditioning=SPECS["sample"], form="denoiser")}
# With code of their own.
CUSTOM = {
    # Their share of the noise is negative where eps is small.
    "flow": lambda: make(unet_spec(), preconditioning="flow"),
    "flow, classes": lambda: make(unet_spec(3), classes=3, preconditioning="flow"),
    "sample": lambda: make(unet_spec(), preconditioning=SPECS["sample"]),
    "sample, classes": lambda: make(unet_spec(3), classes=3, preconditioning=SPECS["sample"]),
    "epsilon, denoiser": lambda: make(unet_spec(), preconditioning=SPECS["epsilon"], form="denoiser"),
    "fourier": lambda: make(unet_spec(time_embedding_type="fourier"), preconditioning="score"),
    "unit range": lambda: make(unet_spec(unit_range=True), preconditioning="score"),
    "null label": lambda: make(unet_spec(4), classes=3, labels=4, null_label=1),
    "variance": lambda: make(unet_spec(out_channels=2), preconditioning=SPECS["epsilon"]),
    "latent": make_latent,
    "song": lambda: make(NET, classes=3),
    "song, two times": lambda: make(NET | {"times": 2}, classes=3, form="jump"),
    "song, states": lambda: make(NET | {"temporal": 3}, classes=3, form="operator", times=(80.0, 1.0, 0.02)),
    "song, null label": lambda: make(NET, classes=2, labels=3, null_label=0),
    "ncsn": lambda: make(NET | {"embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1],
                                "channel_mult_noise": 2}),
    "dhariwal": lambda: make({"name": "dhariwal_unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
                              "attn_resolutions": [4], "head_channels": 8}, classes=3),
    "edm2": lambda: make({"name": "edm2_unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
                          "attn_resolutions": [4], "head_channels": 8}, classes=3),
    "equilibrium": lambda: make({"name": "equilibrium", "width": 16, "heads": 2, "injection": 1, "equilibrium": 2,
                                 "expansion": 2}, classes=3, form="direct")}
EVERY = STOCK | CUSTOM


def export_every(names: Sequence[str], form: str, root: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Export students by their names in EVERY as ROOT/out/NUMBER; give each number with noise, labels and own images."""
    for k, name in enumerate(names):
        student = EVERY[name]()
        student.save(root / "students" / str(k))
        export(str(root / "students" / str(k)), form, root / "out" / str(k))
        labels = labels_of(SEEDS, student.num_classes)
        given = {"noise": noise(SEEDS, student.shape), "images": student.sample(SEEDS, labels)}
        yield str(k), given | ({} if labels is None else {"labels": labels})
