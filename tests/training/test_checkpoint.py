"""Checkpoints: everything comes back, the newest whole one counts, and every damage is found."""

from __future__ import annotations

import json
import random

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_tensors
from pidistill.files.manifest import MANIFEST, verify, write_manifest
from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors
from pidistill.training import batches
from pidistill.training.checkpoint import (
    clean,
    collect,
    collect_optimizer,
    describe_contents,
    latest,
    list_checkpoints,
    name_networks,
    newest,
    read_trained_config,
    restore,
    restore_optimizer,
    set_aside,
)
from pidistill.training.config import OptimizerConfig
from pidistill.training.optimizer import RAdam, make_optimizer
from tests.runs import cut, metrics, start_run
from tests.training.checkpoints import PHASES, RATES, list_names, make_state, write_checkpoints


def test_everything_comes_back(tmp_path):
    state = make_state(0, steps=7)  # beyond RAdam's first steps
    write_checkpoints(tmp_path, 7, state=state)
    other = make_state(1)
    assert restore(tmp_path / "000007", other) == {"step": 7, "config": {"k": 7}, "phases": PHASES}
    assert other.phases["pid"].skipped.look() == [0, 0, 2]
    ours, theirs = collect(state), collect(other)
    assert ours.keys() == theirs.keys() == {"student", "optimizer-pid", *(f"student-ema-{rate}" for rate in RATES)}
    assert {name for name, _ in name_networks(other)} == ours.keys() - {"optimizer-pid"}
    for name, tensors in ours.items():
        assert tensors.keys() == theirs[name].keys() and tensors
        assert all(torch.equal(value, theirs[name][key]) for key, value in tensors.items())
    assert {path.suffix for path in (tmp_path / "000007").iterdir()} == {".json", ".safetensors"}


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
    other = make_state(0)
    other.phases["pid"].optimizer = RAdam([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(PidistillError, match=r"optimizer-pid\.safetensors does not fit") as caught:
        restore(tmp_path / "000001", other)
    assert "\n" not in str(caught.value)
    with pytest.raises(PidistillError, match=r"no average at the rate 0\.3"):
        restore(tmp_path / "000001", make_state(0, rates=(0.3,)))


@pytest.mark.parametrize("name", ["radam", "adam"])
def test_moments_come_back_laid_out_as_their_weights_are(tmp_path, name):
    """The fused kernels go through both side by side: channels last, or a transposed view, would be mixed up."""
    def make() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        weights = [torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last), torch.randn(5, 6).T, torch.randn(3)]
        parameters = [torch.nn.Parameter(weight) for weight in weights]
        return parameters, make_optimizer(OptimizerConfig(name=name, lr=0.1), iter(parameters))

    def take(parameters, optimizer, steps: range) -> None:
        for step in steps:
            for p in parameters:
                p.grad = torch.sin(p.detach() * step)
            optimizer.step()

    whole, cut = make(), make()
    take(*whole, range(12))
    take(*cut, range(8))
    write_tensors(tmp_path / "o", collect_optimizer(cut[1]))
    again = make()
    for p, q in zip(again[0], cut[0], strict=True):
        p.data.copy_(q.data)
    restore_optimizer(again[1], read_tensors(tmp_path / "o"), tmp_path / "o")
    take(*again, range(8, 12))
    assert all(torch.equal(p, q) for p, q in zip(whole[0], again[0], strict=True))


def rewrite_as_of_old(folder) -> None:
    """Rewrite a checkpoint as it was before a step could have several phases."""
    (folder / "optimizer-pid.safetensors").rename(folder / "optimizer.safetensors")
    record = read_json(folder / "state.json")
    phase = record.pop("phases")["pid"]
    del phase["norm"], phase["parts"], record["notes"]
    (folder / "state.json").write_text(json.dumps(record | phase))
    (folder / MANIFEST).unlink()
    write_manifest(folder)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_goes_on_from_a_checkpoint_of_the_old_layout(tmp_path, monkeypatch, precision):
    """Bit for bit, with its moments, its loss scale, its count of skipped steps and its sums between two lines."""
    plain = batches.draw_batch

    def draw_batch(phase, number, seed, step, ks, device):
        batch = plain(phase, number, seed, step, ks, device)
        return batch | {"z": batch["z"] * float("nan")} if step == 1 else batch

    monkeypatch.setattr(batches, "draw_batch", draw_batch)
    options = {"checkpoint.keep": 9, "log.every": 4, "precision": precision}
    whole = start_run(tmp_path / "a", options)
    cut(tmp_path / "a", tmp_path / "b", 3)
    folder = tmp_path / "b" / "checkpoints" / "000003"
    assert read_json(folder / "state.json")["phases"]["pid"]["skipped"] == 1
    assert describe_contents(folder) == {"networks": "student", "averages": "student at 0.9", "phases": "pid"}
    rewrite_as_of_old(folder)
    record = read_json(folder / "state.json")
    assert record.keys() == {"step", "logged", "loss", "good", "skipped", "loss_scale", "config"} and record["good"] == 2
    assert describe_contents(folder) == {"networks": "student", "averages": "student at 0.9"}
    for a, b in zip(whole, start_run(tmp_path / "b", options), strict=True):
        assert torch.equal(a, b)
    lines = [[{key: value for key, value in line.items() if not key.startswith("loss_by_t")} for line in metrics(folder)]
             for folder in (tmp_path / "a", tmp_path / "b")]  # whose sums by noise level are newer than that layout
    assert lines[0] == lines[1] and metrics(tmp_path / "b")[-1]["skipped"] == 1
    last = [read_json(tmp_path / name / "checkpoints" / "000006" / "state.json") for name in "ab"]
    assert last[0] == last[1]


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
