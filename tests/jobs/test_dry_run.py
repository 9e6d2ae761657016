"""What a dry run promises: real counts, no weights, no files."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.jobs import dry_run as dryrun
from pidistill.jobs.build_objective import build_objective
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config


def config(**changes) -> DistillConfig:
    return load_config(DistillConfig, "digits", {"teacher": "bundled:digits", **changes})


def traced(**changes):
    """The objective of the bundled run on the meta device."""
    settings = config(**changes)
    return build_objective(settings, load_teacher("bundled:digits", weights=False).to("meta"), "meta")


def test_operations_are_seven_network_passes():
    """Two student passes, their backward at twice the cost, and the teacher: 7 forward passes (the issue of speed: 297
    GFLOP for a network of 42.4)."""
    from torch.utils.flop_counter import FlopCounterMode

    net = load_teacher("bundled:digits", weights=False).model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(2, 1, 16, 16, device="meta"), torch.empty(2, device="meta"),
            torch.empty(2, dtype=torch.int64, device="meta"))
    assert dryrun.count_operations(traced()) == {"pid": pytest.approx(7 * counter.get_total_flops() / 2, rel=0.02)}


@pytest.mark.parametrize("change, more", [({"objective.scheme": "central"}, True), ({"objective.scheme": "autodiff"}, True),
                                          ({"student.init": "random", "student.width": 0.5}, False)])
def test_the_choice_of_method_changes_the_cost(change, more):
    plain, other = dryrun.count_operations(traced())["pid"], dryrun.count_operations(traced(**change))["pid"]
    assert (other > 1.2 * plain) if more else (other < 0.6 * plain)


def memory_of(facts):
    return next(value for key, value in facts.items() if key.startswith("memory of each GPU"))


def test_batch_is_split_over_gpus_and_microbatches():
    facts = dryrun.dry_run(config(**{"train.batch": 64, "train.microbatch": 8}), gpus=4)
    assert facts["batch"] == "64 = 4 GPUs x 2 x 8"
    assert "memory of each GPU at its fullest, 8 at a time" in facts
    with pytest.raises(PidistillError, match="multiple of the GPUs"):
        dryrun.dry_run(config(), gpus=7)


def test_profiles_are_counted():
    """Each width once more than the weights in a checkpoint; a snapshot at each interval and at the end."""
    plain, more = (config(**{"train.steps": 900, "profiles": {"widths": widths, "every": 400}})
                   for widths in ([], [0.05, 0.1]))
    weights = dryrun.count_bytes(traced().networks["student"])
    assert dryrun.estimate_checkpoint(traced(), more) - dryrun.estimate_checkpoint(traced(), plain) == 2 * weights
    assert dryrun.dry_run(more)["profiles"] == f"{dryrun.format_bytes(2 * weights)}; 3 are kept"
    assert "profiles" not in dryrun.dry_run(plain)


def test_automatic_microbatches_are_those_that_the_gpu_holds():
    batches = {memory: dryrun.dry_run(config(**{"train.batch": 64, "train.microbatch": "auto"}), memory=memory)["batch"]
               for memory in (1, 0.1)}
    assert batches[1] == "64 = 1 GPU x 1 x 64" and batches[0.1] == "64 = 1 GPU x 3 x 22"
    facts = dryrun.dry_run(config(**{"train.batch": 64}), memory=0.1)
    assert facts["batch"] == "64 = 1 GPU x 1 x 64" and memory_of(facts)["together"].endswith("too much for 0.1 GB")


def test_a_step_that_does_not_run_without_values_is_still_counted():
    facts = dryrun.dry_run(config(**{"objective.scheme": "autodiff"}))
    assert memory_of(facts)["together"].startswith("not known") and "FLOP" in facts["operations"]["a sample"]


@pytest.mark.slow
@pytest.mark.parametrize("recompute, least", [(False, 32), (True, 64)])
def test_the_paper_s_cifar10_batch_fits_a_gpu_of_24_gb(recompute, least):
    """Batch 512, tf32, LPIPS at 224: by accumulation, with a sixth of the memory to spare; more with recomputation."""
    settings = load_config(DistillConfig, "cifar10", {"train.recompute": recompute})
    facts = dryrun.dry_run(settings, gpus=1, memory=24)
    gpus, parts, micro = facts["batch"].removeprefix("512 = ").split(" x ")
    number, unit = memory_of(facts)["together"].split(",")[0].split()
    assert gpus == "1 GPU" and int(parts) * int(micro) >= 512 and unit == "GiB"
    assert float(number) * 2**30 <= 24e9 * 5 / 6 and memory_of(facts)["together"].endswith("fits 24 GB")
    assert int(micro) >= least


@pytest.mark.parametrize("preset, parameters, batch, flops", [
    ("cifar10", 55_732_739, 512, 296.7 + 92), pytest.param("imagenet64", 295_899_267, 2048, None, marks=pytest.mark.slow)])
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


def test_a_run_is_counted_before_its_images_are_there(capsys):
    """As with them; a small network, an objective that draws images."""
    values = {"teacher": "bundled:digits", "train.steps": 10, "train.batch": 8, "out": "x", "grid.points": 10,
              "objective": {"name": "consistency"}}
    facts = [dryrun.dry_run(load_config(DistillConfig, "default", values | {"data": data}))
             for data in ("digits", "nowhere/digits.zip")]
    assert facts[0] == facts[1] and "data=nowhere/digits.zip is not there" in capsys.readouterr().err


def test_command_prints_and_leaves_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("distill", "--dry-run", "--gpus", "2", "--memory", "12", "--set", "train.batch=32")
    assert result.code == 0 and "32 = 2 GPUs x 1 x 16" in result.out and "A100" in result.out
    assert "fits 12 GB" in result.out
    assert list(tmp_path.iterdir()) == []
