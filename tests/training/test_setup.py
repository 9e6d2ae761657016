"""What a run builds and checks before its first step."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from pidistill.core.errors import PidistillError
from pidistill.files.weights import read_tensors
from pidistill.training import microbatch, setup
from pidistill.training.batches import draw_batch
from pidistill.training.checkpoint import collect
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.setup import START, check_processes, choose_microbatch, compile_objective, prepare
from tests.runs import make_objective, start_run
from tests.training.checkpoints import list_names

CPU = torch.device("cpu")


def configure(folder="x", **changes) -> DistillConfig:
    return load_config(DistillConfig, "default", {"train.steps": 6, "train.batch": 7, "ema": 0.9, "out": str(folder),
                                                  **changes})


def test_a_new_run_starts_at_step_0_with_all_samples(tmp_path):
    objective = make_objective()
    objective.networks["student"].eval()
    run = prepare(objective, configure(**{"train.microbatch": 3}), tmp_path)
    assert run.record == START and run.start == 0 and run.device == CPU
    assert run.microbatches == [[(0, range(0, 2)), (0, range(2, 4)), (0, range(4, 7))]]
    assert run.step.objective is objective and objective.networks["student"].training


def test_a_run_that_is_there_goes_on_from_its_newest_whole_checkpoint(tmp_path, capsys):
    """And says which was left out."""
    start_run(tmp_path, {"checkpoint.keep": 9, "checkpoint.every": 2, "precision": "fp16"})
    (tmp_path / "checkpoints" / "000006" / "student.safetensors").write_bytes(b"")
    config = configure(**{"precision": "fp16", "train.batch": 4, "optimizer.name": "radam"})
    run = prepare(make_objective(), config, tmp_path)
    phase = run.step.phases["pid"]
    assert run.start == 4 and run.record["logged"] == 4 and phase.skipped.counts.tolist() == [0, 0, 0]
    assert phase.scaler.state_dict() == run.record["phases"]["pid"]["loss_scale"] != {}
    warning = " ".join(capsys.readouterr().err.split())
    assert "student.safetensors has 0 bytes" in warning and "going on from 000004" in warning
    assert list_names(tmp_path / "checkpoints") == ["000002", "000004", "000006.damaged"]
    for name, tensors in collect(run.step).items():
        saved = read_tensors(tmp_path / "checkpoints" / "000004" / f"{name}.safetensors")
        assert all(torch.equal(value, saved[key]) for key, value in tensors.items()), name


@pytest.mark.parametrize("batch, setting, expected", [(7, None, 7), (7, 3, 3), (7, 100, 7), (1, 3, 1)])
def test_a_microbatch_is_as_set_or_all(batch, setting, expected):
    config = configure(**{"train.batch": batch, "train.microbatch": setting})
    assert choose_microbatch(Accelerator(), make_objective(), config, 0) == expected


def test_an_automatic_microbatch_is_what_the_memory_holds_and_says_so(monkeypatch, capsys):
    config = configure(**{"train.batch": 4096, "train.microbatch": "auto"})
    assert choose_microbatch(Accelerator(), make_objective(), config, 0) == 4096
    monkeypatch.setattr(microbatch, "free_memory", lambda device: 2e6)
    micro = choose_microbatch(Accelerator(), make_objective(), config, 0)
    assert 1 <= micro < 4096
    assert f"microbatches of {micro} of 4096 (" in " ".join(capsys.readouterr().err.split())


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    accelerator = Accelerator()
    check_processes(accelerator, configure())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PidistillError, match="several processes were started, and accelerate sees one"):
        check_processes(accelerator, configure())


def test_an_automatic_microbatch_does_not_go_with_shards(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_processes(Accelerator(), configure())
    with pytest.raises(PidistillError, match="does not go with FSDP2; give the number"):
        check_processes(Accelerator(), configure(**{"train.microbatch": "auto"}))


@pytest.mark.parametrize("setting, device, compiles", [
    ("auto", "cpu", False), ("auto", "cuda", True), ("never", "cuda", False), ("default", "cpu", True),
    ("max-autotune", "cpu", True)])
def test_what_is_compiled_and_where(monkeypatch, setting, device, compiles):
    """The student's network in place; teacher and distance by other calls, which give the same numbers."""
    objective, seen = make_objective(), {}
    monkeypatch.setattr(setup, "try_compile",
                        lambda target, what, **options: seen.update({what: (target, options)}) or target)
    batch = draw_batch(objective.phases()[0], 0, 0, 0, range(5), CPU)
    student, calls, loss = objective.networks["student"], dict(objective.calls), objective.loss(batch)
    compile_objective(objective, configure(compile=setting), torch.device(device))
    assert list(seen) == (["the student's network", "the teacher", "the distance"] if compiles else [])
    for _, options in seen.values():
        assert options == {"dynamic": False} | ({"mode": setting} if setting == "max-autotune" else {})
    if compiles:
        assert seen["the student's network"][0] is student.net
        assert [objective.calls[name] is seen[f"the {name}"][0] for name in calls] == [True, True]
    assert objective.networks["student"] is student and torch.equal(objective.loss(batch), loss)
