"""The predicted memory of a step: against tensors that are really there, and against what the process really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pidistill.core.precision import autocast
from pidistill.jobs.build_objective import build_objective
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.parts import native
from pidistill.nets.parts.native import build
from pidistill.training.batches import draw_batch
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.footprint import ACTIVATIONS, GPUEmulation, Ledger, Rehearsal, group_tensors
from pidistill.training.recompute import recompute_networks
from tests.helpers import tiny_teacher, vgg_weights

CPU = torch.device("cpu")
SMALL_NET = {"name": "song_unet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def configure(**changes) -> DistillConfig:
    return load_config(DistillConfig, "digits", {"objective.distance": "l2", "optimizer.clip": None, **changes})


def objective_of(config, net=SMALL_NET):
    return build_objective(config, tiny_teacher(net, (1, 16, 16)))


def rehearse(config, micro=8, accumulate=False, net=SMALL_NET, **options):
    options = {"gpu": False, **options}
    return Rehearsal(objective_of(config, net), config, **options)(micro, accumulate)


def grows(label: str) -> bool:
    """Whether what has this label grows with the samples at a time."""
    return label.startswith(ACTIVATIONS)


def test_a_ledger_follows_births_and_deaths():
    ledger = Ledger(block=1)
    with ledger:
        a = torch.ones(1000)                    # 4000
        b = a[:10]                              # a view holds its base
        del a
        c = torch.ones(2000, dtype=torch.int8)  # 2000
        ledger.count(c, "kept")
        d = b + 1                               # 40
        del b
        e = d * 2                               # 40: the first 4000 are gone
    assert ledger.peak == {ACTIVATIONS: 4040, "kept": 2000} and ledger.total == 2080
    del c, d, e
    assert ledger.total == 0


@pytest.mark.parametrize("changes", [
    {}, {"objective.scheme": "central"}, {"precision": "bf16"}, {"train.recompute": True},
    {"objective.distance": {"name": "features", "net": "digits_perceptual"}},
    {"objective.distance": {"name": "features", "net": "digits_perceptual", "microbatch": 2}}])
def test_without_values_as_with_them(changes):
    """The pass of a real objective, followed by the same ledger on real tensors, holds the same bytes at its fullest."""
    config = configure(**changes)
    real = objective_of(config)
    if config.train.recompute:
        recompute_networks(real.networks.values())
    ledger = Ledger(64)
    with ledger:
        for tensors in group_tensors(real).values():
            for tensor in tensors:
                ledger.count(tensor, "there")
        batch = draw_batch(real.phases()[0], 0, 0, 0, range(16), CPU)
        with autocast(config.precision, CPU):
            loss = real.loss(batch).sum()
        loss.backward()
    found = rehearse(config, 16)
    there = ledger.peak["there"]
    assert sum(found.get(label, 0) for label in ("weights", "teacher", "distance")) == there
    growing = sum(size for label, size in found.items() if grows(label) or label == "gradients")
    assert growing == pytest.approx(sum(ledger.peak.values()) - there, rel=0.02)


def test_what_a_footprint_consists_of():
    """Copies of the weights, each under its name; activations grow with the samples at a time and nothing else does."""
    found, twice = rehearse(configure(ema=[0.9, 0.5])), rehearse(configure(ema=[0.9, 0.5]), 16)
    weights = found["weights"]
    assert found["teacher"] == weights and found["EMA"] == 2 * weights
    assert rehearse(configure(ema=[0.9, 0.5], **{"profiles.widths": [0.05, 0.1]}))["EMA"] == 4 * weights
    assert found["optimiser"] == pytest.approx(2 * weights, rel=0.1) and found.get("gradients", 0) < 0.1 * weights
    assert twice[ACTIVATIONS] == pytest.approx(2 * found[ACTIVATIONS], rel=0.02)
    assert {k: v for k, v in twice.items() if not grows(k)} == {k: v for k, v in found.items() if not grows(k)}
    config = configure(ema=[0.9, 0.5])
    assert Rehearsal(objective_of(config), config, gpu=False).by_phase(8, False) == {"pid": found}
    accumulated = rehearse(configure(), accumulate=True)
    exchanged = rehearse(configure(), accumulate=True, processes=2)
    assert accumulated["gradients"] == pytest.approx(weights, rel=0.05)
    assert exchanged["gradients"] == pytest.approx(2 * weights, rel=0.05)


def test_parts_of_a_batch_go_through_one_after_the_other():
    """All samples that a process has of a part, or fewer; never the whole batch's."""
    config = configure(**{"objective": {"name": "pid_corrected", "share": 0.25}, "train.batch": 16})
    rehearsal = Rehearsal(objective_of(config), config, gpu=False)
    whole, twelve, six = (rehearsal.by_phase(micro, False) for micro in (16, 12, 6))
    assert whole["student"] == twelve["student"] and whole["fake"][ACTIVATIONS] > 1.3 * twelve["fake"][ACTIVATIONS]
    assert twelve["student"][ACTIVATIONS] == pytest.approx(2 * six["student"][ACTIVATIONS], rel=0.05)
    halved = Rehearsal(objective_of(config), config, gpu=False, processes=2).by_phase(8, False)
    assert halved["student"][ACTIVATIONS] == six["student"][ACTIVATIONS]


def test_options_that_save_memory_do():
    lpips = {"name": "lpips", "weights": str(vgg_weights()), "size": 32}
    plain, parts = (rehearse(configure(**{"objective.distance": {**lpips, **more}}), gpu=True)
                    for more in ({}, {"microbatch": 1}))
    assert parts[f"{ACTIVATIONS} of the distance"] < 0.6 * plain[f"{ACTIVATIONS} of the distance"]
    kept = [rehearse(configure(**{"train.recompute": recompute}), 64, gpu=True)[ACTIVATIONS]
            for recompute in (True, False)]
    assert kept[0] < 0.6 * kept[1]


@pytest.mark.skipif(build.load_library() is None, reason="no C compiler, or not Linux")
def test_the_cpu_s_kernels_keep_less():
    own = rehearse(configure(), 64, net=SMALL_NET)[ACTIVATIONS]
    with native.switched_off():
        assert own < 0.7 * rehearse(configure(), 64, net=SMALL_NET)[ACTIVATIONS]


def test_an_objective_is_left_as_it_is():
    config = configure()
    objective = objective_of(config)
    Rehearsal(objective, config, gpu=True)(4, True)
    for tensors in group_tensors(objective).values():
        assert all(type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.grad is None for tensor in tensors)


def test_as_on_a_gpu():
    """Attention without its matrix; normalisation lifted to float32 by autocast; the optimiser over all tensors at once."""
    net = {**SMALL_NET, "attn_resolutions": [16]}
    with native.switched_off():
        cpu, gpu = (rehearse(configure(), 64, net=net, gpu=gpu)[ACTIVATIONS] for gpu in (False, True))
    assert 0.5 * cpu < gpu <= 1.1 * cpu
    with GPUEmulation(), autocast("fp16", CPU):
        x = torch.nn.functional.group_norm(torch.ones(2, 4, 3, 3, dtype=torch.float16), 2)
    assert x.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits, L2", "adm, L2", "digits, LPIPS of 1"])
def test_the_process_takes_what_is_predicted(name):
    """A run of the trainer in a process of its own: the resident set's peak is within 20 % of the prediction."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    real, predicted = (json.loads(subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--child", f"{kind}:{name}"], capture_output=True, text=True, check=True,
        env=environment, cwd=Path(__file__).parents[2]).stdout.splitlines()[-1]) for kind in ("ours", "predicted"))
    assert sum(predicted.values()) == pytest.approx(real, rel=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"precision": "fp16"}, {"train.recompute": True}, {"train.microbatch": 32}])
def test_the_gpu_takes_what_is_predicted(tmp_path, changes):
    from pidistill.training.trainer import train

    config = configure(**{"train.batch": 256, "train.steps": 2, "out": str(tmp_path), **changes})
    objective = build_objective(config, load_teacher("bundled:digits"))
    micro = config.train.microbatch or 256
    found = Rehearsal(objective, config, gpu=True)(micro, micro < 256)
    torch.cuda.reset_peak_memory_stats()
    train(objective, config, tmp_path)
    assert sum(found.values()) == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.2)
