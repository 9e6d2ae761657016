"""Checkpoints: everything comes back, the newest whole one counts, and every damage is found."""

from __future__ import annotations

import random

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.manifest import MANIFEST, verify
from pidistill.training.checkpoint import (
    clean,
    collect,
    latest,
    list_checkpoints,
    newest,
    read_trained_config,
    restore,
    set_aside,
)
from pidistill.training.ema import EMA
from pidistill.training.optimizer import RAdam
<<<<<<< HEAD
from tests.helpers import MLP, grid_of, in_child

RATES = (0.5, 0.9, 0.0)


def make(seed: int, steps: int = 0):
    torch.manual_seed(seed)
    teacher = gaussian("2")
    objective = PID(make_student(teacher, "random", MLP), teacher, grid_of(teacher, 5))
    optimizer, ema = RAdam(objective.parameters(), lr=0.1), EMA(objective.networks, RATES)
    for step in range(steps):
        for p in objective.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        ema.update(step)
    return objective, ema, optimizer


def write(folder, *steps: int, state=None, **options) -> None:
    """Checkpoints of the same state."""
    tensors = collect(*(state or make(0, steps=1)))
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, tensors, {"config": {"k": step}})
    assert checkpoints.close() is None


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def stages(monkeypatch):
    """What `files.stage` was called with; `act(k, what)` is called at each."""
    seen = []
    monkeypatch.setattr(folders, "mark_stage", lambda what: (seen.append(what), stages_act[0](len(seen), what)))
    monkeypatch.setattr("pidistill.training.checkpoint_writer.mark_stage", folders.mark_stage)
    monkeypatch.setattr("pidistill.files.manifest.mark_stage", folders.mark_stage)
    stages_act = [lambda k, what: None]
    seen_of = lambda act: stages_act.__setitem__(0, act)
    return seen, seen_of
=======
from tests.training.checkpoints import RATES, list_names, make_state, write_checkpoints
>>>>>>> h4


def test_everything_comes_back(tmp_path):
    state = make_state(0, steps=7)  # beyond RAdam's first steps
    write_checkpoints(tmp_path, 7, state=state)
    other = make_state(1)
    assert restore(tmp_path / "000007", *other) == {"step": 7, "config": {"k": 7}}
    ours, theirs = collect(*state), collect(*other)
    assert ours.keys() == theirs.keys() == {"student", "optimizer", *(f"student-ema-{rate}" for rate in RATES)}
    for name, tensors in ours.items():
        assert tensors.keys() == theirs[name].keys() and tensors
        assert all(torch.equal(value, theirs[name][key]) for key, value in tensors.items())
    assert {path.suffix for path in (tmp_path / "000007").iterdir()} == {".json", ".safetensors"}


<<<<<<< HEAD
def test_a_checkpoint_is_of_the_moment_of_the_call(tmp_path, stages):
    """The weights go on changing while it is written."""
    gate = threading.Event()
    stages[1](lambda k, what: gate.wait(20))
    objective, ema, optimizer = make(0, steps=1)
    before = {name: value.clone() for name, value in objective.networks["student"].state_dict().items()}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, collect(objective, ema, optimizer), {})
    with torch.no_grad():
        for p in objective.parameters():
            p.zero_()
    assert names(tmp_path) == [] or names(tmp_path)[0].startswith(".")  # save did not wait for the disk
    gate.set()
    assert checkpoints.close() is None
    found = read_tensors(tmp_path / "000001" / "student.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in before.items())


@pytest.mark.parametrize("final", [False, True])
def test_the_last_one_takes_no_memory_of_its_own(tmp_path, monkeypatch, final):
    written, write_folder = {}, checkpoint_writer.write_folder
    monkeypatch.setattr(checkpoint_writer, "write_folder",
                        lambda folder, files, *rest: (written.update(files), write_folder(folder, files, *rest)))
    checkpoints, tensors = Checkpoints(tmp_path), collect(*make(0, steps=1))
    checkpoints.save(1, tensors, {}, final)
    assert checkpoints.close() is None
    assert {value.data_ptr() == written[file][name].data_ptr() for file in tensors for name, value in tensors[file].items()
            if value.numel()} == {final}
    verify(tmp_path / "000001")


=======
>>>>>>> h4
def test_none_is_there(tmp_path):
    assert newest(tmp_path) == (None, []) and latest(tmp_path) is None and read_trained_config(tmp_path) is None


def test_newest_is_the_largest_number_that_is_whole(tmp_path):
    write_checkpoints(tmp_path, 5, 999000, 1000000, keep=9)
    assert newest(tmp_path) == (tmp_path / "1000000", [])  # names sort otherwise from a million steps on
    assert latest(tmp_path).name == "1000000" and read_trained_config(tmp_path) == {"k": 1000000}
    (tmp_path / "1000000" / "student.safetensors").write_bytes(b"")
    found, wrong = newest(tmp_path)
    assert found.name == "999000" and len(wrong) == 1 and "student.safetensors has 0 bytes" in wrong[0]
    (tmp_path / "999000" / "state.json").unlink()
    assert newest(tmp_path)[0].name == "000005" and read_trained_config(tmp_path) == {"k": 1000000}
    (tmp_path / "000005" / MANIFEST).unlink()
    with pytest.raises(PidistillError, match="none of the 3 checkpoints") as caught:
        newest(tmp_path)
    assert "\n" not in str(caught.value)
    set_aside(tmp_path, 5, "damaged")
    assert list_names(tmp_path) == ["000005", "1000000.damaged", "999000.damaged"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000005"]


def test_what_a_crash_left_is_cleaned_up(tmp_path):
    left = ["checkpoints/.000004.77/x", "checkpoints/.000001.gone/x", ".student.77/x", ".student.old/x", ".config.yaml.77",
            "samples/.000500.png.77"]
    stays = ["checkpoints/000003/x", ".lock", ".lock.json", "config.yaml", ".gitignore", "samples/000500.png"]
    for name in left + stays:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clean(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(stays)


def test_another_optimiser_state_is_one_line(tmp_path):
    write_checkpoints(tmp_path, 1)
    objective, ema, _ = make_state(0)
    with pytest.raises(PidistillError, match="does not fit") as caught:
        restore(tmp_path / "000001", objective, ema, RAdam([torch.nn.Parameter(torch.ones(3))]))
    assert "\n" not in str(caught.value)
    with pytest.raises(PidistillError, match=r"no average at the rate 0\.3"):
        restore(tmp_path / "000001", objective, EMA(objective.networks, [0.3]), make_state(0)[2])


# Damage --------------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(tmp_path):
    """1,000 single bits over all files of a checkpoint, and every bit of the manifest."""
    write_checkpoints(tmp_path, 1)
    folder, rng = tmp_path / "000001", random.Random(0)
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    weights = [len(content) for content in contents.values()]
    flips = [(path, rng.randrange(8 * len(contents[path]))) for path in rng.choices([*contents], weights, k=1000)]
    flips += [(path, rng.randrange(8 * len(contents[path]))) for path in contents for _ in range(100)]
    flips += [(folder / MANIFEST, bit) for bit in range(8 * len(contents[folder / MANIFEST]))]
    verify(folder)
    for path, bit in flips:
        damaged = bytearray(contents[path])
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(PidistillError) as caught:
            verify(folder)
        assert "\n" not in str(caught.value)
        path.write_bytes(contents[path])
    verify(folder)


def test_every_truncation_and_loss_is_found(tmp_path):
    write_checkpoints(tmp_path, 1)
    folder = tmp_path / "000001"
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for size in (0, 1, 8, len(whole) // 2, len(whole) - 1, len(whole) + 1):
            path.write_bytes((whole + b" ")[:size])
            with pytest.raises(PidistillError):
                verify(folder)
        path.unlink()
        with pytest.raises(PidistillError, match="missing"):
            verify(folder)
        path.mkdir()
        with pytest.raises(PidistillError):
            verify(folder)
        path.rmdir()
        path.write_bytes(whole)
    verify(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"files": 3, "sha256": ""}', "[" * 100_000, "\xff", "9" * 5000])
def test_a_manifest_of_anything_is_one_line(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(PidistillError) as caught:
        verify(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_names_no_files_elsewhere(tmp_path):
    from pidistill.files.manifest import serialise_manifest

    (tmp_path / "outside").write_text("x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / MANIFEST).write_text(serialise_manifest({"files": {"../outside": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(PidistillError, match="missing"):
        verify(tmp_path / "a")
<<<<<<< HEAD


# Interruptions -------------------------------------------------------------------------------------------------------------


def test_killed_at_every_stage_of_a_write_a_whole_checkpoint_is_left(tmp_path, stages):
    """SIGKILL at stage 1, 2, ... of writing the third checkpoint, until it comes through."""
    seen, act = stages
    state = make(0, steps=1)
    write(tmp_path / "start", 1, 2, state=state)
    seen.clear()
    left = []
    for k in range(1, 100):
        folder = tmp_path / str(k) / "checkpoints"
        shutil.copytree(tmp_path / "start", folder)
        act(lambda n, what, k=k: os.kill(os.getpid(), signal.SIGKILL) if n == k else None)
        status = in_child(lambda folder=folder: write(folder, 3, state=state))
        found, wrong = newest(folder)  # what is under a number is whole: nothing has to be skipped
        assert wrong == [] and found.name in ("000002", "000003")
        clean(folder.parent)
        assert all(not name.startswith(".") for name in names(folder)) and len(list_checkpoints(folder)) >= 2
        left.append(found.name)
        act(lambda n, what: None)
        write(folder, 4, state=state)  # and the next run goes on
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
    state = make(0, steps=1)
    write(tmp_path / "start", 1, 2, state=state)
    seen.clear()
    for k in range(1, 100):
        folder = tmp_path / str(k) / "checkpoints"
        shutil.copytree(tmp_path / "start", folder)

        def fail(n, what, k=k, folder=folder):
            if n == k:
                assert {"000001", "000002"} & set(names(folder))
                raise OSError(code, os.strerror(code))

        act(fail)
        write(folder, 3, state=state)
        clean(folder.parent)
        assert newest(folder) == (folder / "000003", []) and names(folder) == ["000002", "000003"]
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
    checkpoints, tensors = Checkpoints(tmp_path), collect(*make(0, steps=1))
    for step in (1, 2, 3):
        checkpoints.save(step, tensors, {})
    full.clear()
    assert checkpoints.close() is None
    assert newest(tmp_path)[0].name == "000003"


def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path, stages, monkeypatch):
    def act(n, what):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path, 1)
    seen = stages[0]
    seen.clear()
    stages[1](act)
    monkeypatch.setattr(checkpoint_writer, "RETRY", 0.01)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, collect(*make(0, steps=1)), {})
    error = checkpoints.close(tries=3)
    assert len(seen) in (3, 4)  # and the one that may have come before
    assert isinstance(error, PidistillError) and "No space left" in str(error)
    assert newest(tmp_path) == (tmp_path / "000001", [])


def test_an_error_is_not_kept_waiting_for_a_full_disk(tmp_path, stages):
    def act(n, what):
        raise OSError(errno.ENOSPC, "No space left on device")

    stages[1](act)
    with pytest.raises(ValueError, match="of the run"), Checkpoints(tmp_path) as checkpoints:  # a minute between two tries
        checkpoints.save(1, collect(*make(0, steps=1)), {})
        raise ValueError("of the run")
    assert len(stages[0]) in (1, 2) and checkpoints.close() is not None
=======
>>>>>>> h4
