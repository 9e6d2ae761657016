"""Checkpoints are written behind the run, whole or not at all, whatever interrupts or refuses the write."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time

import pytest
import torch

from pidistill.core.errors import CannotWrite, PidistillError
from pidistill.files import folders
from pidistill.files.manifest import verify
from pidistill.files.safetensors_header import read_header
from pidistill.files.weights import load_weights, read_tensors
from pidistill.training import checkpoint_writer
from pidistill.training.checkpoint import clean, collect, list_checkpoints, newest
from pidistill.training.checkpoint_writer import Checkpoints, can_mend_itself
from tests.helpers import in_child
from tests.own_nets import Sliced, Tied, TiedTwice, Transposed
from tests.training.checkpoints import list_names, make_state, write_checkpoints


@pytest.fixture
def stages(monkeypatch):
    """The stages of writes so far, and what sets the action `act(k, stage)` that is called at each."""
    seen = []
    action = [lambda k, what: None]
    monkeypatch.setattr(folders, "mark_stage", lambda what: (seen.append(what), action[0](len(seen), what)))
    monkeypatch.setattr("pidistill.training.checkpoint_writer.mark_stage", folders.mark_stage)
    monkeypatch.setattr("pidistill.files.manifest.mark_stage", folders.mark_stage)
    return seen, lambda act: action.__setitem__(0, act)


def test_a_checkpoint_is_of_the_moment_of_the_call(tmp_path, stages):
    """The weights go on changing while it is written."""
    gate = threading.Event()
    stages[1](lambda k, what: gate.wait(20))
    state = make_state(0, steps=1)
    before = {name: value.clone() for name, value in state.objective.networks["student"].state_dict().items()}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, collect(state), {})
    with torch.no_grad():
        for p in state.phases["pid"].parameters:
            p.zero_()
    assert list_names(tmp_path) == [] or list_names(tmp_path)[0].startswith(".")  # save did not wait for the disk
    gate.set()
    assert checkpoints.close() is None
    found = read_tensors(tmp_path / "000001" / "student.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in before.items())


@pytest.mark.parametrize("final", [False, True])
def test_the_last_one_takes_no_memory_of_its_own(tmp_path, monkeypatch, final):
    written, write_folder = {}, checkpoint_writer.write_folder
    monkeypatch.setattr(checkpoint_writer, "write_folder",
                        lambda folder, files, *rest: (written.update(files), write_folder(folder, files, *rest)))
    checkpoints, tensors = Checkpoints(tmp_path), collect(make_state(0, steps=1))
    checkpoints.save(1, tensors, {}, final)
    assert checkpoints.close() is None
    assert {value.data_ptr() == written[file][name].data_ptr() for file in tensors for name, value in tensors[file].items()
            if value.numel()} == {final}
    verify(tmp_path / "000001")


def test_pruning_keeps_the_newest_and_the_first_of_each_so_many_steps(tmp_path):
    write_checkpoints(tmp_path / "a", *range(3, 40, 3), keep=2, every=10)
    assert list_names(tmp_path / "a") == ["000012", "000021", "000030", "000036", "000039"]
    write_checkpoints(tmp_path / "b", 1, 2, 3, keep=2)
    assert list_names(tmp_path / "b") == ["000002", "000003"]


def test_killed_at_every_stage_of_a_write_a_whole_checkpoint_is_left(tmp_path, stages):
    """SIGKILL at stage 1, 2, ... of writing the third checkpoint, until it comes through."""
    seen, act = stages
    state = make_state(0, steps=1)
    write_checkpoints(tmp_path / "start", 1, 2, state=state)
    seen.clear()
    left = []
    for k in range(1, 100):
        folder = tmp_path / str(k) / "checkpoints"
        shutil.copytree(tmp_path / "start", folder)
        act(lambda n, what, k=k: os.kill(os.getpid(), signal.SIGKILL) if n == k else None)
        status = in_child(lambda folder=folder: write_checkpoints(folder, 3, state=state))
        found, wrong = newest(folder)  # what is under a number is whole: nothing has to be skipped
        assert wrong == [] and found.name in ("000002", "000003")
        clean(folder.parent)
        assert all(not name.startswith(".") for name in list_names(folder)) and len(list_checkpoints(folder)) >= 2
        left.append(found.name)
        act(lambda n, what: None)
        write_checkpoints(folder, 4, state=state)  # and the next run goes on
        assert newest(folder)[0].name == "000004"
        seen.clear()
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert left == sorted(left) and set(left) == {"000002", "000003"} and len(left) > 15


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_an_error_at_every_stage_is_a_warning_and_tried_again(tmp_path, stages, monkeypatch, capsys, code):
    """The disk fills at stage 1, 2, ...: the run goes on, the old checkpoints stay, and the next attempt writes it."""
    seen, act = stages
    monkeypatch.setattr(checkpoint_writer, "RETRY", 0.01)
    state = make_state(0, steps=1)
    write_checkpoints(tmp_path / "start", 1, 2, state=state)
    seen.clear()
    for k in range(1, 100):
        folder = tmp_path / str(k) / "checkpoints"
        shutil.copytree(tmp_path / "start", folder)

        def fail(n, what, k=k, folder=folder):
            if n == k:
                assert {"000001", "000002"} & set(list_names(folder))
                raise OSError(code, os.strerror(code))

        act(fail)
        write_checkpoints(folder, 3, state=state)
        clean(folder.parent)
        assert newest(folder) == (folder / "000003", []) and list_names(folder) == ["000002", "000003"]
        warned = capsys.readouterr().err
        if len(seen) < k:
            break
        if "pruned" not in seen[k - 1]:
            assert "checkpoint 3 is not written" in warned and os.strerror(code) in " ".join(warned.split())
        seen.clear()
    assert k > 15


def test_while_the_disk_is_full_the_newest_state_is_kept_for_later(tmp_path, stages, monkeypatch):
    full = threading.Event()
    full.set()

    def act(n, what):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    stages[1](act)
    monkeypatch.setattr(checkpoint_writer, "RETRY", 0.01)
    checkpoints, tensors = Checkpoints(tmp_path), collect(make_state(0, steps=1))
    for step in (1, 2, 3):
        checkpoints.save(step, tensors, {})
    full.clear()
    assert checkpoints.close() is None
    assert newest(tmp_path)[0].name == "000003"


def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path, stages, monkeypatch):
    def act(n, what):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_checkpoints(tmp_path, 1)
    seen = stages[0]
    seen.clear()
    stages[1](act)
    monkeypatch.setattr(checkpoint_writer, "RETRY", 0.01)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, collect(make_state(0, steps=1)), {})
    error = checkpoints.close(tries=3)
    assert len(seen) in (3, 4)  # and the one that may have come before
    assert isinstance(error, PidistillError) and "No space left" in str(error)
    assert newest(tmp_path) == (tmp_path / "000001", [])


def test_an_error_is_not_kept_waiting_for_a_full_disk(tmp_path, stages):
    def act(n, what):
        raise OSError(errno.ENOSPC, "No space left on device")

    stages[1](act)
    with pytest.raises(ValueError, match="of the run"), Checkpoints(tmp_path) as checkpoints:  # a minute between two tries
        checkpoints.save(1, collect(make_state(0, steps=1)), {})
        raise ValueError("of the run")
    assert len(stages[0]) in (1, 2) and checkpoints.close() is not None


# What waiting cannot mend -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [
    ValueError("You are trying to save a sparse tensors"), TypeError("no str"), RuntimeError("Some tensors share memory"),
    PidistillError("cannot hold"), KeyError("c128")], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("final", [False, True])
def test_an_error_that_waiting_cannot_mend_is_not_waited_for(tmp_path, monkeypatch, capsys, error, final):
    """One try, at once; the run goes on, and the next checkpoint is written."""
    tries = []

    def fail(*_, **__):
        tries.append(1)
        raise error

    began, state = time.monotonic(), collect(make_state(0, steps=1))
    checkpoints = Checkpoints(tmp_path)  # a minute between two tries
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint_writer, "write_folder", fail)
        checkpoints.save(1, state, {}, final)
        assert checkpoints.future.result(10) is error and len(tries) == 1
    warned = " ".join(capsys.readouterr().err.split())
    assert "checkpoint 1 is not written" in warned and "The run goes on; waiting cannot mend that" in warned
    checkpoints.save(2, state, {}, final)
    assert checkpoints.close() is None and list_names(tmp_path) == ["000002"] and time.monotonic() - began < 30


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), CannotWrite("full"), MemoryError(),
                                   torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_full_disk_and_a_full_memory_are_waited_for(error):
    assert can_mend_itself(error)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", [Tied, TiedTwice, Transposed, Sliced])
def test_weights_that_share_memory_are_written(tmp_path, kind, final):
    """What has several names is copied and written once."""
    net = kind()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"net": dict(net.state_dict())}, {}, final)
    assert checkpoints.close() is None
    path = tmp_path / "000001" / "net.safetensors"
    read, other = read_tensors(path), kind()
    assert all(torch.equal(read[name], value) for name, value in before.items()) and read.keys() == before.keys()
    assert ("__metadata__" in read_header(path)) == (kind in (Tied, TiedTwice))
    load_weights(other, read, path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
