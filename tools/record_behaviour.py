"""What the package computes, as hashes, so that a rearrangement of its code can be shown to change nothing.

    python -m tools.record_behaviour inputs FOLDER              # files that the teachers below are read from, once
    python -m tools.record_behaviour record FOLDER before.json  # in a checkout of the code before
    python -m tools.record_behaviour record FOLDER after.json   # in one of the code after
    python -m tools.record_behaviour compare before.json after.json

Recorded are, on one thread: the losses and the weights of 100 steps on the digits (every scheme with every distance,
microbatches, half precision, EDM's loss, two processes with whole weights and with shards), those of 3 steps of a network of
CIFAR-10's size, the images of 64 seeds of every kind of teacher, and what an earlier `record` has saved: its student's
images, and the end of a run that it left half done.
Everything goes through public names and the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import pidistill

SCHEMES = ("upwind", "midpoint", "central", "autodiff")
NET = '{"name": "song_unet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}'
MODULE = """
import torch
import pidistill


class Mine(pidistill.Denoiser):
    def __init__(self):
        super().__init__((1, 8, 8), 3)

    def denoise(self, x, t, labels=None):
        s = 0.25 / (0.25 + t.reshape(-1, 1, 1, 1) ** 2)
        return s * x + (1 - s) * 0.1 * (0 if labels is None else labels.reshape(-1, 1, 1, 1))
"""


def make_inputs(folder: Path) -> None:
    """Files of teachers of every kind, VGG16's weights with random values, and a student and a half run of this code."""
    import diffusers
    import onnx
    from tests import edm_pickles

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    state, place, channels = {}, 0, 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            state[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
            state[f"features.{place}.bias"] = torch.randn(width) * 0.1
            place, channels = place + 2, width
        place += 1
    save_file(state, folder / "vgg16.safetensors")
    (folder / "mine.py").write_text(MODULE)
    unet = diffusers.UNet2DModel(sample_size=16, in_channels=1, out_channels=1, block_out_channels=(32, 64),
                                 layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                                 up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "ddpm")
    vae = diffusers.AutoencoderKL(block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                                  up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4)
    dit = diffusers.DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
                                          num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=5)
    torch.nn.init.normal_(dit.proj_out_2.weight, std=0.1)
    diffusers.DiTPipeline(dit, vae, diffusers.DDIMScheduler()).save_pretrained(folder / "dit")
    digits: Any = pidistill.load_teacher("bundled:digits")
    options = {key: value for key, value in digits.net_spec.items() if key != "name"}
    edm_pickles.write(folder / "edm.pkl", digits.model, kwargs=options | {"img_resolution": 16, "label_dim": 10},
                      img_resolution=16, img_channels=1, label_dim=10, sigma_data=0.5)
    cifar = pidistill.load_teacher("edm:cifar10-32x32-uncond-vp", weights=False).to_empty(device="cpu")
    for p in cifar.parameters():
        torch.nn.init.normal_(p, std=0.02) if p.ndim < 2 else torch.nn.init.normal_(p, std=1 / p[0].numel() ** 0.5)
    for name, b in cifar.named_buffers():
        b.copy_(torch.ones_like(b) / b.numel()) if "resample" in name else b.copy_(torch.linspace(1, 1e-4, len(b)))
    save_file({key: value.contiguous() for key, value in cifar.model.state_dict().items()}, folder / "cifar.safetensors")
    helper, T = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node("Constant", [], ["shape"], value=onnx.numpy_helper.from_array(np.array([-1, 1, 1, 1]))),
             helper.make_node("Constant", [], ["q"], value=onnx.numpy_helper.from_array(np.float32(0.25))),
             helper.make_node("Reshape", ["t", "shape"], ["u"]), helper.make_node("Mul", ["u", "u"], ["u2"]),
             helper.make_node("Add", ["u2", "q"], ["sum"]), helper.make_node("Div", ["q", "sum"], ["keep"]),
             helper.make_node("Mul", ["x", "keep"], ["D"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "D", [info("x", T.FLOAT, ["B", 1, 8, 8]), info("t", T.FLOAT, ["B"])],
                              [info("D", T.FLOAT, ["B", 1, 8, 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "graph.onnx")
    run(folder, "train-teacher", "--set", "train.steps=20", "--set", "preview.every=20", "--set", f"net={NET}",
        "--out", str(folder / "teacher-run"))
    distil(folder / "student-run", {"train.steps": 20})
    distil(folder / "half-run", {"train.steps": 30, "checkpoint.every": 15, "train.batch": 8})
    whole = folder / "half-run"
    shutil.rmtree(whole / "checkpoints" / "000030")
    shutil.rmtree(whole / "student")


def run(folder: Path, *arguments: str, processes: int = 1, shards: bool = False) -> str:
    """A command line of pidistill, in `folder`, on CPUs; gives what it printed."""
    code = "import torch; torch.set_num_threads(1); from pidistill.cli import main; main()"
    start, settings = [sys.executable, "-c", code], {"OMP_NUM_THREADS": "1"}
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m",
                 "pidistill.cli"]
        settings |= {"ACCELERATE_USE_CPU": "true"} | ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if shards else {})
    done = subprocess.run([*start, *arguments], cwd=folder, capture_output=True, text=True, env=os.environ | settings)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr}")
    return done.stdout


def distil(out: Path, overrides: dict[str, Any], teacher: Any = "bundled:digits") -> Path:
    values = {"train.steps": 100, "train.batch": 8, "log.every": 1, "preview.every": 1000, "evaluate.num": 16,
              "evaluate.batch": 16, "checkpoint.minutes": None} | overrides
    pidistill.distill(teacher, preset="digits", out=out, overrides=values)
    return out


def digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(np.ascontiguousarray(tensors[name].numpy()).tobytes())
    return found.hexdigest()


def result(out: Path, name: str = "student") -> dict[str, Any]:
    """A run's losses, to the bit, and the hash of its weights."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"losses": [float(record["loss"]).hex() for record in records if "loss" in record],
            "weights": digest(load_file(out / name / "model.safetensors"))}


def curve(out: Path, overrides: dict[str, Any], teacher: Any = "bundled:digits") -> dict[str, Any]:
    """The losses and weights of a distillation."""
    return result(distil(out, overrides, teacher))


def draw_student(folder: Path) -> str:
    """The images of a student that another version of the package made."""
    return digest({"x": pidistill.load_student(folder).sample(range(64))})


def train_teacher(out: Path, *settings: str, **processes: Any) -> dict[str, Any]:
    """100 steps of EDM's loss, or what else is set."""
    given = ("train.steps=100", "log.every=1", "train.batch=16", "preview.every=100", f"net={NET}", *settings)
    run(out.parent, "train-teacher", *(word for setting in given for word in ("--set", setting)), "--out", str(out),
        **processes)
    return result(out, "teacher")


def distil_on_two(out: Path, *settings: str, shards: bool = False) -> dict[str, Any]:
    """10 steps of a distillation on two processes."""
    given = ("train.steps=10", "log.every=1", "train.batch=8", "evaluate.num=16", "evaluate.batch=16", *settings)
    run(out.parent, "distill", *(word for setting in given for word in ("--set", setting)), "--out",
        str(out), processes=2, shards=shards)
    return result(out)


def sample(spec: str, inputs: Path, out: Path) -> str:
    """The images of 64 seeds of a teacher, by the command line."""
    run(inputs, "sample", spec, "--seeds", "0-63", "--out", str(out), "--force")
    return digest({key: torch.from_numpy(value) for key, value in np.load(out).items()})


def go_on(half: Path, copy: Path) -> dict[str, Any]:
    """The end of a run that another version of the package began."""
    shutil.copytree(half, copy)
    run(copy.parent, "resume", str(copy))
    return result(copy)


def record(inputs: Path, target: Path) -> None:
    """Everything, into a JSON file, which may hold some of it already; runs are made in a folder beside it and deleted."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(inputs))
    work = target.with_suffix(".runs")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}

    def note(name: str, measure: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        if name not in found:
            found[name] = measure(*arguments, **options)
            target.write_text(json.dumps(found, indent=1))
            print(name, flush=True)

    vgg = str(inputs / "vgg16.safetensors")
    distances: dict[str, Any] = {
        "l1": "l1", "l2": "l2", "pseudo_huber": {"name": "pseudo_huber", "c": 0.03},
        "features": {"name": "features", "net": "digits_perceptual"}, "lpips": {"name": "lpips", "weights": vgg, "size": 16}}
    for scheme in SCHEMES:
        for name, distance in distances.items():
            values = {"objective": {"name": "pid", "scheme": scheme, "distance": distance}}
            note(f"digits/{scheme}/{name}", curve, work / f"{scheme}-{name}", values)
    for name, values in {
            "microbatch": {"train.microbatch": 3}, "recompute": {"train.recompute": True},
            "balance": {"objective.balance": 0.5},
            "gradient": {"objective.stop_gradient": False}, "random": {"student.init": "random", "student.width": 0.5},
            "mlp": {"student.init": "random", "student.net": {"name": "mlp"}},
            "rates": {"ema": [0.9, 0.0], "precision": "tf32"}, "adam": {"optimizer.name": "adam"},
            "lpips in parts": {"objective.distance": {**distances["lpips"], "microbatch": 2}}}.items():
        note(f"digits/{name}", curve, work / name, values)
    note("digits/bf16 teacher", curve, work / "bf16", {"objective.teacher_precision": "bf16", "train.steps": 5})
    for precision in ("bf16", "fp16"):
        note(f"digits/{precision}", curve, work / f"whole-{precision}", {"precision": precision, "train.steps": 4})
        note(f"digits/edm {precision}", train_teacher, work / f"edm-{precision}", f"precision={precision}", "train.steps=4")
    note("digits/edm", train_teacher, work / "edm")
    note("digits/edm in parts", train_teacher, work / "edm-parts", "train.microbatch=5", "optimizer.clip=0.5")
    for kind, shards in (("whole", False), ("shards", True)):
        more = {"processes": 2, "shards": shards}
        note(f"two processes/edm {kind}", train_teacher, work / f"edm-{kind}", "train.steps=10", **more)
        note(f"two processes/pid {kind}", distil_on_two, work / f"pid-{kind}", "train.microbatch=3", shards=shards)
    cifar = f"edm:cifar10-32x32-uncond-vp,weights={inputs / 'cifar.safetensors'}"
    small = {"train.steps": 3, "train.batch": 2, "evaluate.features": None, "evaluate.num": 2, "evaluate.batch": 2,
             "preview.seeds": "0-1"}
    for scheme in SCHEMES:
        values = small | {"objective": {"name": "pid", "scheme": scheme, "distance": "l2"}}
        note(f"cifar10/{scheme}/l2", curve, work / f"cifar-{scheme}", values, cifar)
    for name in ("l1", "pseudo_huber", "lpips"):
        values = small | {"objective": {"name": "pid", "distance": distances[name]}}
        note(f"cifar10/upwind/{name}", curve, work / f"cifar-{name}", values, cifar)

    for spec in ("bundled:digits", f"folder:{inputs / 'teacher-run'}", "gaussian:1x8x8,modes=4,std=0.2", "python:mine:Mine",
                 f"edm:{inputs / 'edm.pkl'}", f"diffusers:{inputs / 'ddpm'}", f"diffusers:{inputs / 'dit'},guidance=2",
                 f"onnx:{inputs / 'graph.onnx'}"):
        note(f"images/{spec.replace(str(inputs), '')}", sample, spec, inputs, work / "images.npz")
    note("old/student", draw_student, inputs / "student-run")
    note("old/run", go_on, inputs / "half-run", work / "half")
    shutil.rmtree(work)


def compare(before: Path, after: Path) -> None:
    """One line for each thing that differs; exit code 1 if anything does."""
    a, b = (json.loads(path.read_text()) for path in (before, after))
    different = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    for name in different:
        print(f"differs: {name}")
    print(f"{len(a.keys() & b.keys()) - len([n for n in different if n in a and n in b])} of {len(a)} are equal bit for bit")
    raise SystemExit(bool(different))


if __name__ == "__main__":
    verb, *paths = sys.argv[1:]
    {"inputs": make_inputs, "record": record, "compare": compare}[verb](*(Path(path).resolve() for path in paths))
