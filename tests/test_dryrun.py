"""What a dry run promises: real counts, no weights, no files."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pidistill import dryrun
from pidistill.config import DistillConfig, load_config
from pidistill.distillation import build_objective
from pidistill.errors import PidistillError
from pidistill.teachers import load_teacher
from pidistill.trainer import draws


def config(**changes) -> DistillConfig:
    return load_config(DistillConfig, "digits", {"teacher": "bundled:digits", **changes})


def traced(**changes):
    """The objective of the bundled run on the meta device."""
    settings = config(**changes)
    return build_objective(settings, load_teacher("bundled:digits", weights=False).to("meta"), "meta")


def test_activations_are_those_of_a_real_pass(plain_kernels):
    """Counted on the meta device, and by holding what autograd holds in a real one: the same bytes."""
    objective = build_objective(config(), load_teacher("bundled:digits"))
    own = {p.untyped_storage().data_ptr() for m in (objective, *objective.frozen) for p in (*m.parameters(), *m.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = draws(objective, 0, 0, range(16), torch.device("cpu"))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(batch)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 16
    assert loss.shape == (16,)
    assert dryrun.activations(traced(), "fp32") == pytest.approx(real, rel=0.05)


def test_operations_are_seven_network_passes():
    """Two student passes, their backward at twice the cost, and the teacher: 7 forward passes (the issue of speed: 297
    GFLOP for a network of 42.4)."""
    from torch.utils.flop_counter import FlopCounterMode

    net = load_teacher("bundled:digits", weights=False).model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(2, 1, 16, 16, device="meta"), torch.empty(2, device="meta"),
            torch.empty(2, dtype=torch.int64, device="meta"))
    assert dryrun.operations(traced()) == pytest.approx(7 * counter.get_total_flops() / 2, rel=0.02)


@pytest.mark.parametrize("change, more", [({"objective.scheme": "central"}, True), ({"objective.scheme": "autodiff"}, True),
                                          ({"student.init": "random", "student.width": 0.5}, False)])
def test_the_choice_of_method_changes_the_cost(change, more):
    plain, other = dryrun.operations(traced()), dryrun.operations(traced(**change))
    assert (other > 1.2 * plain) if more else (other < 0.6 * plain)


def test_half_precision_changes_what_is_kept():
    plain, half = dryrun.activations(traced(), "fp32"), dryrun.activations(traced(), "fp16")
    assert half != plain and 0.5 * plain < half < 1.5 * plain


def test_batch_is_split_over_gpus_and_microbatches():
    facts = dryrun.dry_run(config(**{"train.batch": 64, "train.microbatch": 8}), gpus=4)
    assert facts["batch"] == "64 = 4 GPUs x 2 x 8"
    assert "activations of 8" in facts["memory of each GPU"]
    with pytest.raises(PidistillError, match="multiple of the GPUs"):
        dryrun.dry_run(config(), gpus=7)


@pytest.mark.parametrize("preset, parameters, batch, flops", [
    ("cifar10", 55_732_739, 512, 296.7 + 92), ("imagenet64", 295_899_267, 2048, None)])
def test_the_papers_presets(preset, parameters, batch, flops):
    """Table 6, without a file of weights; the operations of CIFAR-10 are the speed issue's 297 + 92 GFLOP a sample."""
    settings = load_config(DistillConfig, preset)
    facts = dryrun.dry_run(settings, gpus=8)
    assert facts["student's parameters"] == facts["teacher's parameters"] == parameters
    assert facts["batch"].startswith(f"{batch} = 8 GPUs")
    assert settings.grid.points == 250 and settings.ema == (0.99995,) and settings.optimizer.name == "radam"
    if flops:
        number, unit = facts["operations"]["a sample"].split()
        assert unit == "GFLOP" and float(number) == pytest.approx(flops, rel=0.03)


def test_command_prints_and_leaves_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("distill", "--dry-run", "--gpus", "2", "--set", "train.batch=32")
    assert result.code == 0 and "32 = 2 GPUs x 1 x 16" in result.out and "A100" in result.out
    assert list(tmp_path.iterdir()) == []
