"""Whatever ends a run, it goes on as if nothing had been: weights, averages, metrics, TensorBoard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors
from pidistill.training import batches, run_folder, trainer
from pidistill.training.checkpoint import list_checkpoints, newest
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import dump_yaml, load_config
from pidistill.training.trainer import Watcher
from tests.helpers import exit_code, in_child, in_clean_child
from tests.runs import make_objective, metrics, start_run

KEPT = {"checkpoint.keep": 9}


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def flip(path, bit: int = 4321) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def interrupted(folder, options, number: int, at: int = 4):
    """A run that sends itself a signal during step `at`; returns what it raised."""
    watcher = Watcher(at, lambda averages, step, folder: os.kill(os.getpid(), number) if step == at else None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if this was started in the background
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
            start_run(folder, options, [watcher])
    finally:
        signal.signal(signal.SIGINT, before)
    return caught.value


# Resumption ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [
    lambda folder: flip(folder / "student.safetensors"), lambda folder: flip(folder / "student-ema-0.9.safetensors"),
    lambda folder: flip(folder / "optimizer-pid.safetensors"), lambda folder: flip(folder / "state.json", 801),
    lambda folder: flip(folder / "manifest.json", 99), lambda folder: (folder / "manifest.json").unlink(),
    lambda folder: os.truncate(folder / "optimizer-pid.safetensors", 100)])
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(tmp_path, capsys, damage):
    whole = start_run(tmp_path / "a", KEPT)
    before = metrics(tmp_path / "a")
    damage(tmp_path / "a" / "checkpoints" / "000006")
    capsys.readouterr()
    again = start_run(tmp_path / "a", KEPT)
    said = " ".join(capsys.readouterr().err.split())
    assert "000006" in said and "going on from 000003" in said
    assert same(whole, again) and metrics(tmp_path / "a") == before
    assert sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir()) == ["000003", "000006", "000006.damaged"]


def test_no_step_is_done_twice_silently_where_no_checkpoint_is_whole(tmp_path):
    start_run(tmp_path / "a", KEPT)
    for folder in list_checkpoints(tmp_path / "a" / "checkpoints"):
        flip(folder / "student.safetensors")
    with pytest.raises(PidistillError, match="none of the 2 checkpoints"):
        start_run(tmp_path / "a", KEPT)


def test_means_between_two_lines_survive(tmp_path):
    """Interrupted at step 3 and 6, lines at 5 and 8: they are those of the whole run, to the last digit."""
    options = {"train.steps": 8, "log.every": 5, "checkpoint.every": 100}
    whole = start_run(tmp_path / "a", options)
    for at in (3, 6):
        interrupted(tmp_path / "b", options, signal.SIGTERM, at)
    assert same(whole, start_run(tmp_path / "b", options)) and metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_tensorboard_has_every_step_once(tmp_path):
    options = {"log.every": 1, "checkpoint.every": 3} | KEPT
    start_run(tmp_path / "a", options)
    flip(tmp_path / "a" / "checkpoints" / "000006" / "state.json", 801)  # steps 4 to 6 are done and written again
    start_run(tmp_path / "a", options)
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([r["loss"] for r in metrics(tmp_path / "a")])


def test_a_half_written_line_of_metrics_is_dropped(tmp_path):
    options = {"log.every": 1} | KEPT
    whole = start_run(tmp_path / "a", options)
    before = metrics(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "000006")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert same(whole, start_run(tmp_path / "a", options)) and metrics(tmp_path / "a") == before


def claimed(folder, values=None, given=(), **options):
    config = load_config(DistillConfig, "default", {"train.steps": 6, "train.batch": 4, "out": str(folder)} | (values or {}))
    return config, run_folder.claim(config, given=given, **options)


def reopen(folder, config, given=(), step=None):
    return run_folder.claim(config.model_copy(update={"out": str(folder)}), resume=True, given=given, step=step)


def test_other_settings_are_refused_unless_they_are_given(tmp_path):
    """Against those of the checkpoint, whatever the folder's config.yaml says by now."""
    run = tmp_path / "run"
    with claimed(run)[1]:
        start_run(run, {"optimizer.lr": 2e-4, "ema": 0.99995, "checkpoint.every": 1000, "log.every": 20})
    config, claim = claimed(run, {"optimizer.lr": 1.0, "objective.distance": "l1"}, resume=True)
    with pytest.raises(PidistillError, match=r"other settings \(objective\.distance, optimizer\.lr\)") as caught, claim:
        pass
    assert "\n" not in str(caught.value)
    (run / "config.yaml").write_text(dump_yaml(config))  # edited by hand
    with pytest.raises(PidistillError, match=r"objective\.distance"), reopen(run, config):
        pass
    with reopen(run, config, given=["optimizer", "objective.distance"]):
        assert load_config(DistillConfig, run / "config.yaml") == config  # the next `resume` finds them there


def test_a_step_can_be_gone_back_to(tmp_path):
    options = {"checkpoint.every": 2} | KEPT
    whole = start_run(tmp_path / "a", options)
    config, _ = claimed(tmp_path / "a", {"optimizer.lr": 1e-2})
    (tmp_path / "a" / "config.yaml").write_text(dump_yaml(config))
    everything = [key.split(".")[0] for key in ("train", "optimizer", "log", "checkpoint", "ema")]
    with pytest.raises(PidistillError, match="no checkpoint 3; there are 2, 4, 6"), \
            reopen(tmp_path / "a", config, everything, step=3):
        pass
    with reopen(tmp_path / "a", config, everything, step=2):
        again = start_run(tmp_path / "a", options)
    assert same(whole, again)
    assert {"000004.later", "000006.later", "000006"} < {path.name for path in (tmp_path / "a" / "checkpoints").iterdir()}
    before = (tmp_path / "a" / "config.yaml").read_text()
    with pytest.raises(PidistillError, match=r"is at step 6 already, beyond train\.steps=5"), \
            claimed(tmp_path / "a", {"train.steps": 5}, everything, resume=True)[1]:
        pass
    assert (tmp_path / "a" / "config.yaml").read_text() == before


# Signals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, None)])
def test_a_signal_ends_the_step_saves_and_exits(tmp_path, capfd, number, code):
    whole = start_run(tmp_path / "a")
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    raised = interrupted(tmp_path / "b", {}, number)
    assert isinstance(raised, KeyboardInterrupt if code is None else SystemExit)
    said = capfd.readouterr().err + (str(raised) if code is None else "")
    assert f"stopped by {signal.Signals(number).name} after step 4 of 6" in said and "pidistill resume" in said
    assert code is None or raised.code == code
    assert [path.name for path in list_checkpoints(tmp_path / "b" / "checkpoints")] == ["000003", "000004"]
    assert before == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    assert same(whole, start_run(tmp_path / "b")) and metrics(tmp_path / "a") == metrics(tmp_path / "b")


def send(tmp_path, step: int, number: int, times: int) -> None:
    """A run that sends itself a signal so many times."""
    def look(averages, done, folder):
        if done == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
            (tmp_path / "went on").touch()

    start_run(tmp_path / "a", {"train.steps": 8}, [Watcher(1, look)])


def test_a_second_sigint_ends_at_once(tmp_path):
    assert exit_code(in_clean_child(send, tmp_path, 4, signal.SIGINT, 2)) == -signal.SIGINT
    assert not (tmp_path / "went on").exists()
    newest(tmp_path / "a" / "checkpoints")  # raises if one is there that is not whole


def test_ignored_signals_stay_ignored(tmp_path):
    """As `nohup` and a shell's & ask for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        start_run(tmp_path / "a", {}, [Watcher(4, lambda *_: os.kill(os.getpid(), signal.SIGINT))])
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_kill_at_any_step_loses_the_steps_since_the_last_checkpoint(tmp_path):
    whole = start_run(tmp_path / "whole", {"train.steps": 8})
    for step in (2, 4, 6, 8):
        assert exit_code(in_clean_child(send, tmp_path, step, signal.SIGKILL, 1)) == -signal.SIGKILL
    assert same(whole, start_run(tmp_path / "a", {"train.steps": 8}))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "a")


# Divergence ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch):
    """Draws of these steps (counted from 0) are NaN."""
    steps: set[int] = set()
    plain = batches.draw_batch

    def draw_batch(phase, number, seed, step, ks, device):
        batch = plain(phase, number, seed, step, ks, device)
        if step in steps:
            batch["z"][0] = float("nan")
        return batch

    monkeypatch.setattr(batches, "draw_batch", draw_batch)
    monkeypatch.setattr(trainer, "draw_batch", draw_batch)
    return steps


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", ["radam", "adam"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, poison, optimizer, precision):
    options = {"optimizer.name": optimizer, "checkpoint.every": 1, "train.steps": 12, "log.every": 3, "ema": 0.0,
               "precision": precision} | KEPT | {"checkpoint.keep": 99}
    start_run(tmp_path / "clean", options)
    poison |= {2, 8}  # within RAdam's first steps, and after them
    start_run(tmp_path / "a", options)
    state = lambda step: {path.name: path.read_bytes() for path in
                          (tmp_path / "a" / "checkpoints" / f"{step:06d}").glob("*.safetensors")}
    for step in range(2, 13):
        assert (state(step) == state(step - 1)) == (step - 1 in poison), step
    records = metrics(tmp_path / "a")
    assert [record.get("skipped", 0) for record in records] == [1, 1, 2, 2]
    assert records[0]["loss"] == pytest.approx(sum(r["loss"] for r in each_loss(tmp_path, 2)) / 2, rel=1e-4)
    assert read_json(tmp_path / "a" / "checkpoints" / "000012" / "state.json")["phases"]["pid"]["skipped"] == 2
    for value in read_tensors(tmp_path / "a" / "checkpoints" / "000012" / "optimizer-pid.safetensors").values():
        assert value.isfinite().all()


def each_loss(tmp_path, steps: int) -> list[dict]:
    """Of the first steps of the same run, one by one."""
    options = read_json(tmp_path / "a" / "checkpoints" / "000001" / "state.json")["config"]
    start_run(tmp_path / "each", {"log.every": 1, "train.steps": steps, "precision": options["precision"],
                                  "optimizer.name": options["optimizer"]["name"], "ema": 0.0})
    return metrics(tmp_path / "each")


def test_an_infinite_loss_with_finite_gradients_is_not_taken(tmp_path, monkeypatch):
    from pidistill.objectives.pid import PID

    plain, calls = PID.loss, []

    def loss(self, batch, step):
        calls.append(1)
        return plain(self, batch, step) + (float("inf") if len(calls) == 2 else 0)

    monkeypatch.setattr(PID, "loss", loss)
    start_run(tmp_path / "a", {"checkpoint.every": 1, "train.steps": 2} | KEPT)
    a, b = (read_tensors(tmp_path / "a" / "checkpoints" / name / "student.safetensors") for name in ("000001", "000002"))
    assert all(torch.equal(a[key], b[key]) for key in a) and metrics(tmp_path / "a")[-1]["skipped"] == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_after_so_many_in_a_row_the_run_stops_with_what_it_knows(tmp_path, poison, precision):
    options = {"train.steps": 12, "train.skip_limit": 3, "checkpoint.every": 100, "log.every": 100, "precision": precision}
    poison |= {1, 2, 4, 6, 7, 8}
    with pytest.raises(PidistillError) as caught:
        start_run(tmp_path / "a", options)
    message = str(caught.value)
    assert "3 steps in a row, up to step 9" in message and "1 of 4 samples" in message and "\n" not in message
    assert "learning rate 0.01" in message and ("loss scale" in message) == (precision == "fp16")
    objective = make_objective()
    t = objective.times(trainer.draw_batch(objective.phases()[0], 0, 0, 8, range(1), torch.device("cpu"))).item()
    assert f"t from {t:.4g} to {t:.4g}" in message
    poison.clear()
    resumed = start_run(tmp_path / "a", options)  # from the state that is on the disk
    assert all(value.isfinite().all() for value in resumed) and read_json(
        tmp_path / "a" / "checkpoints" / "000009" / "state.json")["phases"]["pid"]["skipped"] == 6


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The rate is so high that the update itself overflows, after a step whose loss and gradient were fine."""
    with pytest.raises(PidistillError, match="are not finite, so they are not saved") as caught:
        start_run(tmp_path / "a", {"optimizer.lr": 1e39, "train.steps": 50,
                                   "checkpoint.every": 1, "optimizer.name": "adam"})
    assert "\n" not in str(caught.value)
    for path in (tmp_path / "a").glob("checkpoints/*/*.safetensors"):
        assert all(bool(v.isfinite().all()) for v in read_tensors(path).values()), path


# Time, locks ---------------------------------------------------------------------------------------------------------------


def test_events_are_read_in_order_after_the_clock_was_put_back(tmp_path, monkeypatch):
    options = {"log.every": 1, "checkpoint.every": 2} | KEPT
    start_run(tmp_path / "a", options | {"train.steps": 4})
    flip(tmp_path / "a" / "checkpoints" / "000004" / "state.json", 801)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    start_run(tmp_path / "a", options)
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    whole = start_run(tmp_path / "a")
    jumps = iter([1e9, -1e9, 0, 3e9, 1, 5e8] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    options = {"checkpoint.minutes": 1000}
    interrupted(tmp_path / "b", options, signal.SIGTERM)
    assert same(whole, start_run(tmp_path / "b", options)) and metrics(tmp_path / "a") == metrics(tmp_path / "b")
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 600


@pytest.mark.parametrize("minutes, steps", [(1e-9, ["000004", "000006"]), (None, ["000006"]), (1000, ["000006"])])
def test_checkpoints_by_the_clock(tmp_path, minutes, steps):
    start_run(tmp_path / "a", {"checkpoint.every": 1000, "checkpoint.minutes": minutes})
    assert [path.name for path in list_checkpoints(tmp_path / "a" / "checkpoints")] == steps


def test_two_runs_cannot_write_one_folder(tmp_path):
    _, claim = claimed(tmp_path / "run")
    with claim:
        for options in ({"force": True}, {"resume": True}, {}):
            with pytest.raises(PidistillError, match=f"written by process {os.getpid()} on ") as caught, \
                    claimed(tmp_path / "run", **options)[1]:
                pass
            assert "\n" not in str(caught.value)

        def other():
            with claimed(tmp_path / "run", resume=True)[1]:
                pass

        assert in_child(other) == 1
    with claimed(tmp_path / "run", resume=True)[1] as folder:
        assert (folder / "config.yaml").exists()


def test_a_lock_of_another_machine_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "LEASE", 0.2)
    with claimed(tmp_path / "run")[1]:
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        with pytest.raises(PidistillError, match="is being written by process"), claimed(tmp_path / "run", resume=True)[1]:
            pass
    assert "waiting for 0 s" in " ".join(capsys.readouterr().err.split())


def test_the_lock_of_a_dead_process_holds_nobody(tmp_path):
    def die():
        with claimed(tmp_path / "run")[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL and (tmp_path / "run" / ".lock.json").exists()
    with claimed(tmp_path / "run", resume=True)[1] as folder:
        assert read_json(folder / ".lock.json")["process"] == os.getpid()
    assert not (tmp_path / "run" / ".lock.json").exists()


def test_force_replaces_a_run_and_nothing_else(tmp_path):
    with claimed(tmp_path / "run")[1] as folder:
        (folder / "checkpoints" / "000009").mkdir(parents=True)
    with pytest.raises(PidistillError, match="holds another run"), claimed(folder)[1]:
        pass
    with claimed(folder, force=True)[1]:
        assert [path.name for path in run_folder.list_entries(folder)] == ["config.yaml"]
    with pytest.raises(PidistillError, match="one of the two"), claimed(folder, force=True, resume=True)[1]:
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    with pytest.raises(PidistillError, match="holds no run"), claimed(tmp_path / "other", force=True)[1]:
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a").mkdir(mode=0o555)
    with pytest.raises(PidistillError, match="cannot write the run's folder"), claimed(tmp_path / "a" / "run")[1]:
        pass


FULL = {"train.steps": 8, "log.every": 1, "checkpoint.every": 1}


def draw_on_a_full_disk(folder, first: int, last: int):
    """A run that draws a picture each step, and from the end of one step to that of another may let no file grow."""
    import resource

    from pidistill.evaluation.pictures import write_grid
    from pidistill.training import checkpoint_writer

    def look(averages, step, folder):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if step in (first, last):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0 if step == first else hard, hard))
        write_grid(folder / f"{step}.png", torch.zeros(4, 1, 8, 8), 2)
        return {"seen": float(step)}

    checkpoint_writer.RETRY = 0.01
    return start_run(folder, FULL, [Watcher(1, look)])


def child_on_a_full_disk(folder) -> None:
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 2)  # where nothing can be written either
        sys.stderr = log
        torch.save(draw_on_a_full_disk(folder / "b", 3, 7), folder / "weights.pt")


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path):
    """The kernel's own answer (no file may grow) from step 3 to step 6: metrics, events, checkpoints, pictures, stderr."""
    whole = start_run(tmp_path / "a", FULL)
    assert exit_code(in_clean_child(child_on_a_full_disk, tmp_path)) == 0
    assert same(whole, torch.load(tmp_path / "weights.pt"))
    lines = [[record for record in metrics(tmp_path / name) if "loss" in record] for name in "ab"]
    assert lines[0] == lines[1] and len(lines[0]) == 8
    assert [record["seen"] for record in metrics(tmp_path / "b") if "seen" in record] == [1, 2, 7, 8]  # with its picture
    steps = [[event.step for event in EventAccumulator(str(tmp_path / name / "tensorboard")).Reload().Scalars("loss")]
             for name in "ab"]
    assert steps[0] == steps[1] == list(range(1, 9))
    assert newest(tmp_path / "b" / "checkpoints")[0].name == "000008"
    assert not (tmp_path / "b" / "5.png").exists() and (tmp_path / "b" / "8.png").exists()


def test_a_folder_that_turns_read_only_leaves_the_run_going(tmp_path, monkeypatch, capsys):
    """As root too: the kernel's answer is put in by hand."""
    import errno

    from pidistill.files import folders
    from pidistill.training import checkpoint_writer, log

    whole = start_run(tmp_path / "a")

    def stage(name):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(folders, "mark_stage", stage)
    monkeypatch.setattr(checkpoint_writer, "RETRY", 0.01)
    monkeypatch.setattr(log, "write_text", lambda path, text: path.write_text(text))  # the log was there before
    assert same(whole, start_run(tmp_path / "b"))
    assert "Read-only file system" in " ".join(capsys.readouterr().err.split())
    assert not list_checkpoints(tmp_path / "b" / "checkpoints")
