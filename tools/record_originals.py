"""Record what NVIDIA's EDM and EDM2 networks and preconditionings compute, for tests/system/test_originals.py.

    git clone https://github.com/NVlabs/edm && git clone https://github.com/NVlabs/edm2
    pip install requests                         # which the originals import
    python -m tools.record_originals edm edm2    # writes tests/fixtures/originals.safetensors

Runs the two checkouts and copies nothing of them. A checkout without .git needs its commit: PATH@COMMIT. Networks,
weights and inputs are those of tests/originals.py, which describes the file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.originals import (
    CASES,
    CLASSES,
    FIXTURE,
    NETS,
    PRECOND_NET,
    PRECOND_SHAPE,
    PRECONDS,
    SHAPE,
    fill,
    labels_for,
    net_input,
    precond_input,
)
from torch import Tensor, nn

THEIRS = {"song_unet": "SongUNet", "dhariwal_unet": "DhariwalUNet", "edm2_unet": "UNet", "embedding": "embedding_type",
          "encoder": "encoder_type", "decoder": "decoder_type", "head_channels": "channels_per_head"}


def load(checkout: str, name: str) -> tuple[Any, str]:
    """A module of a checkout, and its commit. The checkouts have modules of the same names: one at a time."""
    folder, _, commit = checkout.partition("@")
    for module in [key for key in sys.modules if key.split(".")[0] in ("training", "torch_utils", "dnnlib")]:
        del sys.modules[module]
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        module = import_module(name)
    finally:
        sys.path.pop(0)
    git = ["git", "-C", folder, "rev-parse", "HEAD"]
    return module, commit or subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def options_of(spec: dict[str, Any]) -> dict[str, Any]:
    return {THEIRS.get(key, key): value for key, value in spec.items() if key not in ("name", "out_channels")}


def make(module: Any, spec: dict[str, Any], classes: int) -> nn.Module:
    """The original network for one of our descriptions."""
    channels, size = SHAPE[:2]
    sizes = {"img_resolution": size, "label_dim": classes}
    if spec["name"] == "edm2_unet":
        sizes |= {"img_channels": channels}
    else:
        sizes |= {"in_channels": channels, "out_channels": spec.get("out_channels", channels)}
    return getattr(module, THEIRS[spec["name"]])(**sizes, **options_of(spec))


def one_hot(case: str, batch: int) -> Tensor | None:
    """Labels as the preconditionings hand them to the network; they turn a missing label into zeros."""
    if case == "uncond":
        return None
    labels = labels_for(case, batch)
    return torch.zeros(1, CLASSES) if labels is None else torch.eye(CLASSES)[labels]


def record_nets(module: Any, names: list[str]) -> dict[str, Tensor]:
    x, c_noise = net_input()
    out = {}
    for name in names:
        for case in CASES:
            net = fill(make(module, NETS[name], 0 if case == "uncond" else CLASSES))
            with torch.no_grad():
                out[f"nets/{name}/{case}"] = net(x.clone(), c_noise, one_hot(case, len(x)))
    return out


def record_training(module: Any) -> dict[str, Tensor]:
    x, c_noise = net_input()
    net = fill(make(module, NETS["edm2"], CLASSES)).train()
    F = net(x, c_noise, one_hot("cond", len(x)))
    F.square().sum().backward()
    weight = net.enc["8x8_conv"].weight
    return {"nets/edm2/training/F": F.detach(), "nets/edm2/training/weight": weight.detach(),
            "nets/edm2/training/grad": weight.grad}


def record_preconds(module: Any) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    x, sigma = precond_input()
    out, facts = {"preconds/sigma": sigma}, {}
    for name, constants in PRECONDS.items():
        for case in CASES:
            D = getattr(module, name)(PRECOND_SHAPE[1], PRECOND_SHAPE[0], label_dim=0 if case == "uncond" else CLASSES,
                                      model_type="SongUNet", **options_of(PRECOND_NET))
            seen: list[Tensor] = []
            fill(D).model.register_forward_pre_hook(lambda net, args, seen=seen: seen.append(args[1]))
            labels = labels_for(case, len(x))
            with torch.no_grad():
                out[f"preconds/{name}/{case}"] = D(x, sigma, None if labels is None else torch.eye(CLASSES)[labels])
        out[f"preconds/{name}/c_noise"], out[f"preconds/{name}/round_sigma"] = seen[0], D.round_sigma(sigma).clone()
        if hasattr(D, "u"):
            out[f"preconds/{name}/u"] = D.u
        values = {key: float(getattr(D, key)) for key in ("sigma_min", "sigma_max", *constants)}
        facts[name] = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return out, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edm", help="checkout of github.com/NVlabs/edm")
    parser.add_argument("edm2", help="checkout of github.com/NVlabs/edm2")
    parser.add_argument("--out", type=Path, default=FIXTURE)
    args = parser.parse_args()
    edm, commit = load(args.edm, "training.networks")
    preconds, facts = record_preconds(edm)
    tensors = record_nets(edm, [name for name in NETS if not name.startswith("edm2")]) | preconds
    edm2, commit2 = load(args.edm2, "training.networks_edm2")
    tensors |= record_nets(edm2, [name for name in NETS if name.startswith("edm2")]) | record_training(edm2)
    metadata = {"commits": {"NVlabs/edm": commit, "NVlabs/edm2": commit2}, "torch": torch.__version__, "facts": facts}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, args.out,
              {key: json.dumps(value) for key, value in metadata.items()})
    print(f"{args.out}: {len(tensors)} tensors, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
