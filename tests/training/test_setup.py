"""What a run builds and checks before its first step."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from pidistill.core.errors import PidistillError
from pidistill.files.weights import read_tensors
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from pidistill.objectives.pid import PID
from pidistill.training import microbatch
from pidistill.training.checkpoint import collect
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.setup import START, check_processes, choose_microbatch, compile_objective, prepare
from tests.helpers import MLP, grid_of
from tests.runs import start_run
from tests.training.checkpoints import list_names

CPU = torch.device("cpu")


def configure(folder="x", **changes) -> DistillConfig:
    return load_config(DistillConfig, "default", {"train.steps": 6, "train.batch": 7, "ema": 0.9, "out": str(folder),
                                                  **changes})


def make_objective() -> PID:
    torch.manual_seed(0)
    teacher = gaussian("2,modes=4,std=0.2")
    return PID(make_student(teacher, "random", MLP), teacher, grid_of(teacher, 10))


def test_a_new_run_starts_at_step_0_with_all_samples(tmp_path):
    run = prepare(make_objective().eval(), configure(**{"train.microbatch": 3}), tmp_path)
    assert run.record == START and run.start == 0 and run.device == CPU
    assert [list(ks) for ks in run.microbatches] == [[0, 1], [2, 3], [4, 5, 6]]
    assert run.step.model.training


def test_a_run_that_is_there_goes_on_from_its_newest_whole_checkpoint(tmp_path, capsys):
    """And says which was left out."""
    start_run(tmp_path, {"checkpoint.keep": 9, "checkpoint.every": 2, "precision": "fp16"})
    objective = make_objective()
    (tmp_path / "checkpoints" / "000006" / "student.safetensors").write_bytes(b"")
    run = prepare(objective, configure(**{"precision": "fp16", "train.batch": 4, "optimizer.name": "radam"}), tmp_path)
    assert run.start == 4 and run.record["logged"] == 4 and run.step.skipped.counts.tolist() == [0, 0, 0]
    assert run.step.scaler.state_dict() == run.record["loss_scale"]
    warning = " ".join(capsys.readouterr().err.split())
    assert "student.safetensors has 0 bytes" in warning and "going on from 000004" in warning
    assert list_names(tmp_path / "checkpoints") == ["000002", "000004", "000006.damaged"]
    for name, tensors in collect(objective, run.step.ema, run.step.optimizer).items():
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
    objective, calls = make_objective(), []
    monkeypatch.setattr(objective, "compile_networks", calls.append)
    compile_objective(objective, configure(compile=setting), torch.device(device))
    assert len(calls) == compiles
    for call in calls:
        assert call.keywords == {"dynamic": False} | ({"mode": setting} if setting == "max-autotune" else {})
