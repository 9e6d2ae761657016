"""An objective of two networks by turns: nothing of the trainer, checkpoints and processes knows a method's name."""

from __future__ import annotations

import copy
import math
import os
import shutil
import signal
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import stream
from pidistill.files import folders
from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors
from pidistill.jobs.build_objective import build_objective
from pidistill.jobs.distill import distill, resume_distillation
from pidistill.jobs.dry_run import dry_run
from pidistill.jobs.inspect import describe
from pidistill.models.teachers.base import load_teacher
from pidistill.training import checkpoint_writer, setup
from pidistill.training.checkpoint import list_checkpoints
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.log import read_metrics
from pidistill.training.optimizer import RAdam
from pidistill.training.trainer import take_steps, train
from tests.adversary import Adversary
from tests.helpers import exit_code, in_child, in_clean_child

TEACHER, ADVERSARY = "gaussian:1x4x4,modes=2,std=0.3", "python:tests.adversary:Adversary"
NET = {"name": "mlp", "width": 16, "depth": 2}
UNET = {"name": "song_unet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
VOLATILE = {"seconds", "images_per_s"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8))
    return path


def configure(data, folder="x", name=ADVERSARY, **values) -> DistillConfig:
    options = {"teacher": TEACHER, "data": str(data), "out": str(folder), "student": {"init": "random", "net": NET},
               "grid.points": 10, "train.steps": 7, "train.batch": 6, "log.every": 2, "checkpoint.every": 3,
               "optimizer.lr": 1e-2, "checkpoint.keep": 9, "ema": 0.9, "evaluate.num": 8, "preview.every": 100,
               "objective": {"name": name}}
    return load_config(DistillConfig, "default", options | values)


def run(config: DistillConfig, folder):
    """Train in a folder from the start or from what is there; gives the objective and its averages."""
    folder.mkdir(exist_ok=True)
    objective = build_objective(config, load_teacher(config.teacher))
    return objective, train(objective, config, folder).averages


def state(folder, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    files = sorted((folder / "checkpoints" / f"{step:06d}").glob("*.safetensors"))
    return {f"{path.stem}/{key}": value for path in files for key, value in read_tensors(path).items()}


def phases_of(folder) -> dict:
    """What the last checkpoint records of each phase."""
    return read_json(folder / "checkpoints" / "000007" / "state.json")["phases"]


def lines(folder) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in VOLATILE} for record in read_metrics(folder)]


def assert_equal(one, other, step: int = 7) -> None:
    a, b = state(one, step), state(other, step)
    assert a.keys() == b.keys() and {key.split("/")[0] for key in a} == {
        "student", "critic", "student-ema-0.9", "copy-target", "optimizer-critic", "optimizer-student"}
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A run of 7 steps that nothing interrupts; the critic takes every second."""
    folder = tmp_path_factory.mktemp("whole")
    run(configure(data, **{"objective.every": 2}), folder)
    return folder


# The mathematics -----------------------------------------------------------------------------------------------------------


def test_phases_are_those_of_plain_pytorch(data, tmp_path):
    """Every phase has its own draws, optimiser and clipping; the follower and the average move after the step."""
    config = configure(data, **{"objective.every": 2, "train.microbatch": 4})
    plain = build_objective(config, load_teacher(TEACHER))
    objective, averages = run(config, tmp_path / "run")
    student, critic, target = plain.networks["student"].train(), plain.networks["critic"], plain.copies["target"]
    mean = copy.deepcopy(student)
    of_student = RAdam(student.parameters(), lr=1e-2)
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.99))

    def draw(phase: int, step: int) -> dict[str, torch.Tensor]:
        draws = [plain.phases()[phase].draw(stream(0, step, k, phase=phase), step) for k in range(6)]
        return {key: torch.from_numpy(np.stack([sample[key] for sample in draws])) for key in draws[0]}

    for step in range(7):
        if step % 2 == 0:
            of_critic.zero_grad()
            plain.judge(draw(0, step), step).mean().backward()
            torch.nn.utils.clip_grad_norm_(critic.parameters(), 0.5)
            of_critic.step()
        of_student.zero_grad()
        plain.please(draw(1, step), step).mean().backward()
        of_student.step()
        with torch.no_grad():
            for p, follower, average in zip(student.parameters(), target.parameters(), mean.parameters(), strict=True):
                follower.copy_(0.5 * follower + 0.5 * p)
                average.lerp_(p, 1 - min(0.9, (1 + step) / (10 + step)))
    pairs = ((objective.networks["student"], student), (objective.networks["critic"], critic),
             (objective.copies["target"], target), (averages[0.9]["student"], mean))
    for ours, theirs in pairs:
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=2e-6)
    assert list(averages[0.9]) == ["student"]  # the critic is not averaged


def test_a_phase_leaves_no_gradient_where_it_does_not_train(data, monkeypatch, tmp_path):
    """Gradients pass through the critic to the student, and none arrives at the critic."""
    objective = build_objective(configure(data), load_teacher(TEACHER))
    seen: list[tuple[str, set[str]]] = []
    for name, loss in (("critic", objective.judge), ("student", objective.please)):
        def look(batch, step, name=name, loss=loss):
            value = loss(batch, step)
            seen.append((name, {net for net, module in objective.networks.items()
                                if all(p.requires_grad for p in module.parameters())}))
            return value
        monkeypatch.setattr(objective, {"critic": "judge", "student": "please"}[name], look)
    train(objective, configure(data, **{"train.steps": 2}), tmp_path)
    assert seen == [("critic", {"critic"}), ("student", {"student"})] * 2
    assert all(p.requires_grad and p.grad is None for net in objective.networks.values() for p in net.parameters())
    assert not any(p.requires_grad for p in objective.copies["target"].parameters())


def test_the_run_tells_the_losses_of_its_phases(whole, data, tmp_path, capsys):
    records = lines(whole)
    assert [record["step"] for record in records] == [2, 4, 6, 7]
    told = {"loss/critic", "loss/student", "lr/critic", "lr/student", "grad_norm/critic", "grad_norm/student"}
    assert all(told < record.keys() and "loss" not in record for record in records)
    assert records[0]["lr/critic"] == 1e-3 and records[0]["lr/student"] == 1e-2
    run(configure(data, **{"objective.every": 3, "log.every": 1, "train.steps": 3}), tmp_path / "thirds")
    assert ["loss/critic" in record for record in lines(tmp_path / "thirds")] == [True, False, False]
    said = capsys.readouterr().err
    assert "step 1/3  loss " in said and " (critic), " in said and " (student)  " in said
    facts = describe_checkpoint(whole)
    assert facts == {"networks": "critic, student", "averages": "student at 0.9", "phases": "critic, student",
                     "followers": "target"}


def describe_checkpoint(folder) -> dict[str, str]:
    (folder / "config.yaml").write_text("x: 1")
    facts = describe(str(folder))
    (folder / "config.yaml").unlink()
    return {key: facts[key] for key in ("networks", "averages", "phases", "followers")}


def test_a_dry_run_counts_every_phase(data):
    facts = dry_run(configure(data))
    memory = next(value for key, value in facts.items() if key.startswith("memory"))
    assert memory.keys() == {"critic", "student"} and "followers" in memory["student"]
    assert facts["critic's parameters"] == 16 * 17 + 17
    counts = [facts["operations"][f"a sample, {name}"] for name in ("critic", "student")]
    assert all(count.endswith("FLOP a step") for count in counts)


def test_everything_is_compiled_by_its_name(data, monkeypatch):
    objective = build_objective(configure(data), load_teacher(TEACHER))
    seen: list[str] = []
    monkeypatch.setattr(setup, "try_compile", lambda target, what, **_: seen.append(what) or target)
    setup.compile_objective(objective, configure(data, compile="default"), torch.device("cpu"))
    assert seen == ["the student's network", "the critic's network", "the target's network", "the teacher"]


def test_an_automatic_microbatch_looks_at_every_phase(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pidistill.training.microbatch.free_memory", lambda device: 1.2 * 40_000)
    run(configure(data, **{"train.microbatch": "auto", "train.batch": 64, "train.steps": 1}), tmp_path / "run")
    assert "of 64 (" in " ".join(capsys.readouterr().err.split())


# Interruptions -------------------------------------------------------------------------------------------------------------


def test_a_kill_at_any_stage_of_a_checkpoint_changes_nothing(whole, data, tmp_path):
    """The process dies at stage 1, 2, ... of its writing, goes on each time, and ends as if nothing had been."""
    config, place = configure(data, **{"objective.every": 2}), tmp_path / "run"
    for stage in range(1, 200):
        if in_child(lambda: run_and_die(config, place, stage)) == 0:  # noqa: B023 -- called at once
            break
    assert stage > 12  # six files of tensors, the record, the manifest, their syncs and renames
    assert_equal(whole, place)


def run_and_die(config: DistillConfig, place, stage: int) -> None:
    torch.set_num_threads(1)
    seen = []

    def mark(name: str) -> None:
        seen.append(name)
        if len(seen) == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    for module in (folders, checkpoint_writer, sys.modules["pidistill.files.manifest"]):
        module.mark_stage = mark
    run(config, place)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_hook_may_leave_after_any_step(whole, data, tmp_path, number):
    config, place = configure(data, **{"objective.every": 2, "checkpoint.every": 1}), tmp_path / "run"
    place.mkdir()
    for step in take_steps(build_objective(config, load_teacher(TEACHER)), config, place):
        assert step.losses.keys() == ({"critic", "student"} if step.number % 2 else {"student"})
        if step.number == number:
            break
    run(config, place)
    assert_equal(whole, place)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("bad, other", [("critic", "student"), ("student", "critic")])
def test_a_step_can_be_left_out_of_one_phase(data, tmp_path, precision, bad, other):
    """It is counted, halves its loss scale, and leaves its networks and moments; the other phase goes on."""
    values = {"precision": precision, "checkpoint.every": 1, "log.every": 1}
    spoilt = values | {"objective.bad": bad, "objective.at": 3}
    run(configure(data, **values), tmp_path / "clean")
    run(configure(data, **spoilt), tmp_path / "run")
    before, after = (state(tmp_path / "run", step) for step in (3, 4))
    same = {key for key in before if torch.equal(before[key], after[key])}
    files = lambda name: {key for key in before if key.startswith((f"{name}/", f"optimizer-{name}/"))}
    assert files(bad) <= same and not files(other) & same
    clean, record = (phases_of(tmp_path / name) for name in ("clean", "run"))
    assert record[bad]["skipped"] == clean[bad]["skipped"] + 1 and record[other]["skipped"] == clean[other]["skipped"]
    if precision == "fp16":
        assert record[bad]["loss_scale"]["scale"] == clean[bad]["loss_scale"]["scale"] / 2
        assert record[other]["loss_scale"] == clean[other]["loss_scale"]
    told = lines(tmp_path / "run")
    assert f"loss/{bad}" not in told[3] and f"loss/{other}" in told[3]
    assert told[3][f"skipped/{bad}"] == told[2].get(f"skipped/{bad}", 0) + 1
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000007")  # and it goes on with these counts and scales
    run(configure(data, **spoilt), tmp_path / "run")
    assert lines(tmp_path / "run") == told
    assert phases_of(tmp_path / "run") == record


def test_a_run_that_diverges_names_the_phase(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Adversary, "spoil", lambda self, phase, step: math.inf if phase == "critic" and step > 2 else 0.0)
    with pytest.raises(PidistillError, match=r"^2 steps in a row of the phase critic, up to step 7, .* At step 7 6 of 6 "
                                             r"samples have such a loss \(t from .*; learning rate 0.001\)"):
        run(configure(data, **{"train.skip_limit": 2, "objective.every": 2, "train.steps": 20}), tmp_path / "run")


def test_settings_of_a_phase_are_checked(data, monkeypatch):
    phases = Adversary.phases
    monkeypatch.setattr(Adversary, "phases", lambda self: [replace(phase, optimizer={"rate": 1}) for phase in phases(self)])
    with pytest.raises(PidistillError, match=r"the phase critic: optimizer\.rate"):
        setup.Step(build_objective(configure(data), load_teacher(TEACHER)), configure(data), torch.device("cpu"))


def test_a_loss_that_is_averaged_already_is_refused(data, monkeypatch, tmp_path):
    monkeypatch.setattr(Adversary, "please", lambda self, batch, step, plain=Adversary.please:
                        plain(self, batch, step).mean())
    with pytest.raises(PidistillError, match=r"the phase student must give the loss of each of 6 samples, \(6,\), got \(\)"):
        run(configure(data), tmp_path / "run")


# Processes -----------------------------------------------------------------------------------------------------------------


def launch(config: DistillConfig, place, processes: int, shards: bool = False, die: int = 0) -> None:
    """The rest of a run by so many processes, as srun starts them. die: stage of a checkpoint that kills the main one."""
    place.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if shards else {}
    of = lambda rank: shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
    started = [in_clean_child(run_as_rank, config, place, of(rank), 0 if rank else die) for rank in range(processes)]
    codes = [exit_code(process) for process in started]
    assert codes == [0] * processes if not die else codes[0] == -signal.SIGKILL and 0 not in codes[1:]


def run_as_rank(config: DistillConfig, place, environment: dict[str, str], die: int = 0) -> None:
    os.environ.update(environment)
    if die:
        run_and_die(config, place, die)
    objective, _ = run(config, place)
    if config.student.net == OWN:
        rank, networks = environment.get("RANK", "0"), [objective.networks, objective.copies]
        held = [value.clone() for nets in networks for _, net in nets.items() for value in net.buffers()]
        torch.save(held, place / f"buffers-{rank}.pt")


def assert_close(one, other, atol: float = 2e-6) -> None:
    a, b = state(one, 7), state(other, 7)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=atol, msg=key)
    for x, y in zip(lines(one), lines(other), strict=True):
        assert x.keys() == y.keys() and all(x[key] == pytest.approx(y[key], rel=1e-4, abs=1e-7) for key in x)


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "shards"])
@pytest.mark.parametrize("net", [pytest.param(NET, id="mlp"), pytest.param(UNET, id="song_unet", marks=pytest.mark.slow)])
def test_two_then_three_then_one_process_train_the_same_networks(data, tmp_path, shards, net):
    """6 samples of a step are 3 + 3 and 2 + 2 + 2, in microbatches; of shards, the phase's constants are gathered."""
    of = lambda steps: configure(data, **{"train.steps": steps, "train.microbatch": 2, "objective.every": 2,
                                          "student.net": net, "log.every": 1})
    run(of(7), tmp_path / "one")
    launch(of(3), tmp_path / "run", 2, shards)
    launch(of(5), tmp_path / "run", 3, shards)
    launch(of(7), tmp_path / "run", 1)
    assert_close(tmp_path / "one", tmp_path / "run")


@pytest.mark.parametrize("processes, shards, precision", [
    (2, False, "fp32"), (2, True, "fp16"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        (1, False, "fp16"), (2, False, "fp16"), (2, True, "fp32"), (3, False, "fp16"), (3, True, "fp16")])])
def test_a_run_of_several_processes_that_is_killed_goes_on(data, tmp_path, processes, shards, precision):
    """The main process is killed while it writes the second checkpoint; the critic takes steps 0 and 5, and 5 is spoilt.

    It ends bit for bit as if nothing had been; of three with whole weights nearly so, since DistributedDataParallel puts
    gradients into other buckets after a process's first step, and their place there is the order in which three are added.
    """
    config = configure(data, **{"objective.every": 5, "objective.bad": "critic", "objective.at": 5, "train.microbatch": 2,
                                "precision": precision, "checkpoint.every": 2, "log.every": 1})
    launch(config, tmp_path / "whole", processes, shards)
    launch(config, tmp_path / "run", processes, shards, die=30)  # of 22 for the first checkpoint and 20 a further one
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["000002"]
    launch(config, tmp_path / "run", processes, shards)
    if processes == 3 and not shards:
        assert_close(tmp_path / "whole", tmp_path / "run")
    else:
        assert_equal(tmp_path / "whole", tmp_path / "run")
        assert phases_of(tmp_path / "whole") == phases_of(tmp_path / "run")
    assert phases_of(tmp_path / "run")["critic"]["skipped"] > 0


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "shards"])
def test_two_processes_leave_a_step_out_of_one_phase_together(data, tmp_path, shards):
    config = configure(data, **{"objective.bad": "critic", "objective.at": 3, "precision": "fp16", "train.microbatch": 3})
    run(config, tmp_path / "one")
    launch(config, tmp_path / "run", 2, shards)
    assert_close(tmp_path / "one", tmp_path / "run")
    one, two = phases_of(tmp_path / "one"), phases_of(tmp_path / "run")
    assert one["critic"]["skipped"] > one["student"]["skipped"] == two["student"]["skipped"]
    for name in one:
        assert one[name]["skipped"] == two[name]["skipped"] and one[name]["loss_scale"] == two[name]["loss_scale"]


OWN = {"name": "python:tests.own_nets:Both"}  # batch normalisation, and buffers of every kind


def test_statistics_are_followed_saved_and_restored(data, tmp_path):
    """The follower and the average have them after every step; an interruption changes nothing, bit for bit."""
    config = configure(data, **{"student.net": OWN, "objective.every": 2, "checkpoint.every": 1})
    objective, averages = run(config, tmp_path / "one")
    student, norm = objective.networks["student"].net, objective.networks["student"].net.norm
    assert norm.num_batches_tracked == 2 * 7 + 4  # calls of the student's phase, and of the critic's
    for copied in (objective.copies["target"].net, averages[0.9]["student"].net):
        for name, value in student.named_buffers():
            assert torch.equal(value, copied.get_buffer(name)), name
    shutil.copytree(tmp_path / "one", tmp_path / "run")
    for step in range(4, 8):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{step:06d}")
    run(config, tmp_path / "run")
    assert_equal(tmp_path / "one", tmp_path / "run")


def test_processes_agree_on_statistics(data, tmp_path):
    """The main process's statistics are everybody's, of whole networks and of shards."""
    config = configure(data, **{"student.net": OWN, "objective.every": 2})
    for name in ("whole", "shards"):
        launch(config, tmp_path / name, 2, shards=name == "shards")
    # The gradient of the bias before the normalisation is 0 but for rounding, by which RAdam divides.
    assert_close(tmp_path / "whole", tmp_path / "shards", atol=1e-4)
    for name in ("whole", "shards"):
        held = [torch.load(tmp_path / name / f"buffers-{rank}.pt") for rank in (0, 1)]
        assert len(held[0]) == 2 * 11 and all(torch.equal(a, b) for a, b in zip(*held, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("values", [{}, {"precision": "fp16"}, {"train.microbatch": "auto"}], ids=str)
def test_phases_on_a_gpu(data, tmp_path, values, monkeypatch):
    """Compiled there, against one process on the CPU; a run goes from the one to the other."""
    run(configure(data, **values), tmp_path / "gpu")
    shutil.copytree(tmp_path / "gpu", tmp_path / "mixed")
    for step in ("000006", "000007"):
        shutil.rmtree(tmp_path / "mixed" / "checkpoints" / step)
    config = configure(data, **values)
    for name in ("cpu", "mixed"):
        (tmp_path / name).mkdir(exist_ok=True)
        process = in_clean_child(run_as_rank, config, tmp_path / name, {"ACCELERATE_USE_CPU": "true"})
        assert exit_code(process) == 0
        a, b = state(tmp_path / "gpu", 7), state(tmp_path / name, 7)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0.02, atol=5e-3 if values.get("precision") else 1e-3, msg=key)


# Stages --------------------------------------------------------------------------------------------------------------------


STAGED = {"name": "python:tests.adversary:Staged"}


def stage_values(data, **values):
    config = configure(data, objective=STAGED, **values).model_dump(mode="json")
    return {key: value for key, value in config.items() if key not in ("teacher", "out")}


def test_stages_are_runs_one_after_the_other(data, tmp_path):
    student = distill(TEACHER, preset="default", out=tmp_path / "run", overrides=stage_values(data))
    first, second = tmp_path / "run" / "1-pid", tmp_path / "run" / "2-Staged"
    assert (tmp_path / "run" / "teacher-student.png").read_bytes() == (second / "teacher-student.png").read_bytes()
    assert list_checkpoints(first / "checkpoints")[-1].name == list_checkpoints(second / "checkpoints")[-1].name == "000007"
    start = read_tensors(first / "student" / "model.safetensors")
    assert all(torch.equal(start[key], value) for key, value in first_weights(second, tmp_path, data).items())
    last = read_tensors(second / "student" / "model.safetensors")
    assert all(torch.equal(last[key], value) for key, value in student.net.state_dict().items())
    assert read_json(tmp_path / "run" / "results.json")["steps"] == 7
    facts = describe(str(tmp_path / "run"))
    assert list(facts["stages"]) == ["1-pid", "2-Staged"] and facts["stages"]["2-Staged"]["phases"] == "critic, student"
    with pytest.raises(PidistillError, match=r"2-Staged is a stage of the run .*: resume that one"):
        resume_distillation(second)


def first_weights(stage, tmp_path, data) -> dict[str, torch.Tensor]:
    """The weights that a stage began with: those of a run of it that takes no step worth the name."""
    config = configure(data, objective=STAGED, **{"student.init": "previous", "student.net": None})
    objective = build_objective(config, load_teacher(TEACHER), previous=tmp_path / "run" / "1-pid")
    return dict(objective.networks["student"].net.state_dict())


def test_a_kill_at_the_border_of_stages_changes_nothing(data, tmp_path):
    values = stage_values(data)
    distill(TEACHER, preset="default", out=tmp_path / "whole", overrides=values)
    border = lambda name: in_child(lambda: distil_and_die(values, tmp_path / "run", name))
    assert border("1-pid/student") == -signal.SIGKILL  # the first stage is trained, and its student not yet there
    assert not (tmp_path / "run" / "1-pid" / "student").exists()
    assert border("2-Staged/config.yaml") == -signal.SIGKILL
    shutil.move(tmp_path / "run", tmp_path / "moved")
    resume_distillation(tmp_path / "moved")
    for stage in ("1-pid", "2-Staged"):
        assert lines(tmp_path / "whole" / stage) == lines(tmp_path / "moved" / stage)
        a, b = (state(tmp_path / name / stage, 7) for name in ("whole", "moved"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    student = [read_tensors(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "moved")]
    assert all(torch.equal(student[0][key], student[1][key]) for key in student[0])


def distil_and_die(values, place, what: str) -> None:
    """Die before `what` is written."""
    torch.set_num_threads(1)
    from pidistill.jobs import distill as job
    from pidistill.training import run_folder
    stage, file = what.split("/")
    plain_save, plain_write = job.Distillation.save, run_folder.write_text

    def save(self, folder, students):
        if (folder.name, file) == (stage, "student"):
            os.kill(os.getpid(), signal.SIGKILL)
        plain_save(self, folder, students)

    def write_text(path, text):
        if (path.parent.name, path.name) == (stage, file):
            os.kill(os.getpid(), signal.SIGKILL)
        plain_write(path, text)

    job.Distillation.save, run_folder.write_text = save, write_text
    distill(TEACHER, preset="default", out=place, overrides=values, resume=True)


def test_a_finished_stage_is_not_trained_again_with_other_settings(data, tmp_path):
    values = stage_values(data)
    distill(TEACHER, preset="default", out=tmp_path / "run", overrides=values)
    with pytest.raises(PidistillError, match=r"1-pid is finished with other settings \(train\.steps\)"):
        resume_distillation(tmp_path / "run", ["train.steps=9"])


def test_a_stage_after_none_is_refused(data):
    with pytest.raises(PidistillError, match=r"student\.init must be teacher, random or a folder"):
        build_objective(configure(data, **{"student.init": "previous", "student.net": None}), load_teacher(TEACHER))


def test_images_must_suit_the_teacher(data, tmp_path):
    big = str(tmp_path / "big.npz")
    np.savez(big, images=np.zeros((3, 5, 5), np.uint8))
    for path, said in ((None, "needs images: data=..."), (big, r"of shape \(1, 5, 5\), the teacher's are \(1, 4, 4\)")):
        config = configure(data).model_copy(update={"data": path})
        with pytest.raises(PidistillError, match=said):
            build_objective(config, load_teacher(TEACHER))
    config = configure(data, objective={"name": "pid"})
    with pytest.raises(PidistillError, match="the objective pid needs no images; leave `data` out"):
        build_objective(config, load_teacher(TEACHER))



def test_a_mistake_in_a_later_stage_is_found_before_the_first_is_trained(data, tmp_path):
    values = stage_values(data) | {"data": None}
    with pytest.raises(PidistillError, match="needs images"):
        distill(TEACHER, preset="default", out=tmp_path / "run", overrides=values)
    assert not (tmp_path / "run").exists()
