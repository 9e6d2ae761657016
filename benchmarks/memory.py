"""What a training step holds in memory: ours against Algorithm 1 as printed, and against what the dry run predicts.

Every number is the peak of a process of its own: on the CPU the resident set's (VmHWM) over that before networks were made,
on a GPU PyTorch's (`max_memory_allocated`). Ours is `pidistill.training.trainer.train` for two steps, as it is; the other is
`reference_step.ReferenceStep` for two steps. Networks and VGG16 have random weights. The prediction is
`footprint.Rehearsal`'s, from the same configuration; it knows nothing of what the convolutions take for themselves. On the
CPU blocks of 64 KiB and more are the system's again when freed (MALLOC_MMAP_THRESHOLD_): glibc by itself keeps those below
32 MiB, and the resident set of many small tensors then is up to a third more than what they hold.

    python -m benchmarks.memory --write benchmarks/results/memory.md [--only NAME ...]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.harness import table, write
from benchmarks.networks import vgg_file
from benchmarks.reference_step import PlainLPIPS, ReferenceStep, plain_networks
from torch import nn

from pidistill.jobs.build_objective import build_objective
from pidistill.models.denoiser import Denoiser
from pidistill.models.teachers.base import build_network_teacher, describe_teacher, load_teacher
from pidistill.training.batches import draw_batch
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.footprint import Rehearsal
from pidistill.training.trainer import train

ADM = {"name": "dhariwal_unet", "model_channels": 64, "channel_mult": [1, 2, 3], "num_blocks": 2,
       "attn_resolutions": [16, 8], "dropout": 0.0}
NETS: dict[str, Any] = {"digits": "bundled:digits", "cifar10": "edm:cifar10-32x32-uncond-vp", "adm": ADM}
LPIPS = {"objective.distance": {"name": "lpips", "weights": "VGG"}}
SPARING = {"train.recompute": True}
CORRECTED = {"objective": {"name": "pid_corrected", "share": 0.5}}  # beside PID's plain form, for what the fake adds

# Name: network, batch, and what differs from L2 and the defaults.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "digits, L2": ("digits", 128, {}),
    "digits, L2, recompute": ("digits", 128, SPARING),
    "digits, LPIPS": ("digits", 6, LPIPS),
    "digits, LPIPS of 1": ("digits", 6, {"objective.distance": {**LPIPS["objective.distance"], "microbatch": 1}}),
    "cifar10, L2": ("cifar10", 4, {}),
    "cifar10, L2, recompute": ("cifar10", 4, SPARING),
    "cifar10, L2, microbatch 1": ("cifar10", 4, {"train.microbatch": 1}),
    "cifar10, LPIPS": ("cifar10", 4, LPIPS),
    "cifar10, LPIPS of 1": ("cifar10", 4, {"objective.distance": {**LPIPS["objective.distance"], "microbatch": 1}}),
    "cifar10, LPIPS of 1, recompute": ("cifar10", 4, {
        **SPARING, "objective.distance": {**LPIPS["objective.distance"], "microbatch": 1}}),
    "digits, corrected": ("digits", 128, CORRECTED),
    "cifar10, corrected": ("cifar10", 4, CORRECTED),
    "adm, L2": ("adm", 8, {}),
    "adm, L2, recompute": ("adm", 8, SPARING),
}


def configure(name: str, out: str, batch: int | None = None) -> DistillConfig:
    _, usual, changes = CASES[name]
    changes = json.loads(json.dumps(changes).replace('"VGG"', json.dumps(str(vgg_file()))))
    return load_config(DistillConfig, "default", {"train.batch": batch or usual, "train.steps": 2, "out": out} | changes)


def make_teacher(name: str) -> Denoiser:
    net = NETS[CASES[name][0]]
    if net == "bundled:digits":
        return load_teacher(net)
    torch.manual_seed(0)
    spec = describe_teacher(load_teacher(net, weights=False))["net"] if isinstance(net, str) else net  # type: ignore[arg-type]
    return build_network_teacher(spec, (3, 32, 32), 0).eval().requires_grad_(False)


def held() -> tuple[float, float]:
    """(bytes now, most bytes so far)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {key: float(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)
             if key in ("VmRSS", "VmHWM")}
    return sizes["VmRSS"], sizes["VmHWM"]


def measured(name: str, plain: bool) -> float:
    """Bytes at the peak of two steps over those before, in this process."""
    two_steps(name, plain, batch=2)  # reads the program's own pages
    gc.collect()
    before, _ = held()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the most so far becomes that of now
    two_steps(name, plain)
    return held()[1] - before


def two_steps(name: str, plain: bool, batch: int | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config, teacher = configure(name, folder, batch), make_teacher(name)
        objective: Any = build_objective(config, teacher)
        if not plain:
            train(objective, config, Path(folder))
            return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    member, student = objective.calls["distance"], objective.networks["student"].to(device)
    distance = PlainLPIPS(member.to(device)) if isinstance(member, nn.Module) else \
        lambda a, b: (a - b).square().flatten(1).mean(dim=1)
    step = ReferenceStep(student, teacher.to(device), distance, objective.grid)
    with plain_networks():
        for k in range(2):
            step(draw_batch(objective.phases()[0], 0, 0, k, range(config.train.batch), device))


def predicted(name: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        config, teacher = configure(name, folder), make_teacher(name)
    share = config.train.batch
    micro = min(share, config.train.microbatch or share)
    rehearse = Rehearsal(build_objective(config, teacher), config, gpu=torch.cuda.is_available())
    return rehearse(micro, accumulate=micro < share)


def ask(*arguments: str) -> Any:
    # Large blocks go back to the system when they are freed: glibc keeps those below 32 MB.
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *arguments], capture_output=True, text=True,
                          env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, name = args.child.split(":", 1)
        print(json.dumps(predicted(name) if kind == "predicted" else measured(name, kind == "plain")))
        return
    rows = []
    for name in args.only:
        net, batch, changes = CASES[name]
        first = next(other for other, (n, b, c) in CASES.items()
                     if (n, b) == (net, batch) and ("objective.distance" in c) == ("objective.distance" in changes))
        ours, plain = ask("--child", f"ours:{name}"), ask("--child", f"plain:{first}")
        guess = sum(ask("--child", f"predicted:{name}").values())
        rows.append([name, str(batch), *(f"{size / 1e6:.0f}" for size in (plain, ours)), f"{ours / plain:.2f}",
                     f"{guess / 1e6:.0f}", f"{guess / ours:.2f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    write(args.write, table(["step", "batch", "Algorithm 1, MB", "ours, MB", "ours / Algorithm 1", "predicted, MB",
                             "predicted / ours"], rows))


if __name__ == "__main__":
    main()
