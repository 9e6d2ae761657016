"""Pairs on disk: what is read is what was drawn, and what is damaged, foreign or hostile is one line."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import pair_labels, pair_noise
from pidistill.core.tensors import quantise
from pidistill.files import pairs as files
from pidistill.files.datasets import open_images
from pidistill.files.manifest import serialise_manifest
from pidistill.files.pairs import PairSettings, PlannedPairs, find_difference, is_pairs, open_pairs
from pidistill.files.reading import sha256
from pidistill.jobs.pairs import draw_pairs
from tests.helpers import tiny_teacher

SEED, NUM = 7, 11


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """11 pairs with 3 states each, in shards of 4."""
    folder = tmp_path_factory.mktemp("pairs") / "p"
    draw_pairs(tiny_teacher(), folder, NUM, sampler="heun:4", trajectory=3, seed=SEED, shard=4)
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(drawn, tmp_path / "p")


def solutions(folder) -> torch.Tensor:
    return torch.cat([load_file(path)["x"] for path in sorted(folder.glob("*.safetensors"))])


def refusal(function, *args) -> str:
    with pytest.raises(PidistillError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pair_is_its_noise_its_solution_its_label_and_its_states(drawn):
    pairs, x = open_pairs(drawn), solutions(drawn)
    assert (len(pairs), pairs.shape, pairs.num_classes, pairs.t_max, len(pairs.times)) == (NUM, (1, 8, 8), 3, 80.0, 3)
    assert torch.equal(pairs.labels, pair_labels(SEED, range(NUM), 3)) and copy.deepcopy([pairs])[0] is pairs
    for k in (10, 0, 5):
        pair = pairs.sample(k)
        assert set(pair) == {"z", "y", "labels", "states"} and {pair[name].dtype for name in "zy"} == {np.dtype(np.float32)}
        assert np.array_equal(pair["z"], (pair_noise(SEED, [k], (1, 8, 8))[0] * 80).numpy())
        assert np.array_equal(pair["y"], x[k].numpy()) and np.array_equal(pair["states"][-1], pair["y"])
        assert pair["labels"] == pairs.labels[k] and pair["states"].shape == (3, 1, 8, 8)
        pair["y"][:] = 3  # what a sample's owner does to it
        assert np.array_equal(pairs.sample(k)["y"], x[k].numpy())
    with pytest.raises(IndexError):
        pairs.read_tensor("x", NUM)


def test_a_flipped_pair_is_refused(drawn):
    assert "leave it out with pairs" in refusal(open_pairs(drawn).sample, 0, True)


def test_solutions_are_images_to_the_bit(drawn):
    x = solutions(drawn)
    for data in (open_pairs(drawn), open_images(drawn), open_images(str(drawn))):
        assert torch.equal(torch.cat(list(data.read_batches(4))), quantise(x))
        assert "tiny" not in data.licence and data.licence.startswith("drawn by the teacher's network song_unet")
    sample = open_images(drawn).sample(6)
    assert np.array_equal(sample["y"], x[6].numpy()) and set(sample) == {"y", "labels"}
    assert np.array_equal(open_images(drawn).sample(6, flip=True)["y"], x[6].numpy()[..., ::-1])


def test_planned_pairs_have_the_noise_and_serve_solutions_once_they_are_there(drawn, tmp_path):
    pairs = open_pairs(drawn)
    planned = PlannedPairs(NUM, (1, 8, 8), 3, 80.0, SEED, pairs.times)
    before, after = planned.sample(9), pairs.sample(9)
    assert before.keys() == after.keys() and np.array_equal(before["z"], after["z"]) and before["labels"] == after["labels"]
    assert before["states"].shape == (3, 1, 8, 8) and not before["y"].any() and not before["states"].any()
    assert next(planned.read_batches(2)).float().mean() == 128
    planned.open(drawn)
    assert all(np.array_equal(planned.sample(9)[name], value) for name, value in after.items())
    assert torch.equal(next(planned.read_batches(2)), next(pairs.read_batches(2)))
    for change, words in (
            ({"num": 12}, "11 pairs, not the 12"), ({"seed": 8}, "their seed is 7, not 8"),
            ({"times": (1.0, 0.0)}, "their times is"), ({"shape": (1, 8, 9)}, "their shape is"),
            ({"num_classes": 4}, "their num_classes is 3, not 4"), ({"t_max": 81.0}, "t_max is 80.0, not 81.0")):
        values = {"num": NUM, "shape": (1, 8, 8), "num_classes": 3, "t_max": 80.0, "seed": SEED, "times": pairs.times}
        assert words in refusal(PlannedPairs(**values | change).open, drawn)


def test_half_is_read_as_float32(tmp_path):
    full = draw_pairs(tiny_teacher(), tmp_path / "full", 5, sampler="heun:4", trajectory=2)
    half = draw_pairs(tiny_teacher(), tmp_path / "half", 5, sampler="heun:4", trajectory=2, half=True)
    for k in range(5):
        for name in ("y", "states"):
            a, b = full.sample(k)[name], half.sample(k)[name]
            assert b.dtype == np.float32 and np.array_equal(a.astype(np.float16).astype(np.float32), b)
    assert (tmp_path / "half" / "00000.safetensors").stat().st_size < 0.6 * (
        tmp_path / "full" / "00000.safetensors").stat().st_size


# damage -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, where", [("00001.safetensors", -1), ("00001.safetensors", 3), ("00001.json", 100),
                                         ("00001.safetensors", 200)])
def test_a_flipped_bit_is_refused_when_its_shard_is_read(folder, name, where):
    data = bytearray((folder / name).read_bytes())
    data[where] ^= 4
    (folder / name).write_bytes(data)
    pairs = open_pairs(folder)
    pairs.sample(3)
    for _ in range(2):
        assert "is damaged" in refusal(pairs.sample, 4) and name in refusal(pairs.sample, 4)
    pairs.sample(8)


@pytest.mark.parametrize("where", [5, 150, 400, -4])
def test_a_flipped_bit_of_the_record_is_refused(folder, where):
    data = bytearray((folder / "pairs.json").read_bytes())
    data[where] ^= 1
    (folder / "pairs.json").write_bytes(data)
    assert "pairs.json" in refusal(open_pairs, folder)


def test_what_is_missing_or_cut_short_is_one_line(folder, tmp_path):
    assert not is_pairs(tmp_path) and not is_pairs("\0") and not is_pairs("x" * 10**4)
    assert "holds no pairs" in refusal(open_pairs, tmp_path)
    pairs = open_pairs(folder)
    pairs.sample(0)
    data = (folder / "00000.safetensors").read_bytes()
    (folder / "00000.safetensors").write_bytes(data[:-300])  # under the eyes of one who reads
    assert "truncated" in refusal(pairs.sample, 3)
    assert "00000.safetensors of 3 shards is missing or cut short" in refusal(open_pairs, folder)
    (folder / "00000.safetensors").write_bytes(data)
    (folder / "00001.json").unlink()
    assert "00001.json is missing" in refusal(open_pairs(folder).sample, 5)
    (folder / "00002.safetensors").unlink()
    assert "00002.safetensors" in refusal(open_images, folder)


def resign(folder, number: int, tensors: dict | None = None, **changes) -> None:
    """Write a shard of other tensors, or a record that says other things, with the checksums that belong to them."""
    path = folder / f"{number:05d}.safetensors"
    if tensors is not None:
        save_file(tensors, path)
    record = json.loads(path.with_suffix(".json").read_text()) | {"shard_sha256": sha256(path)} | changes
    record.pop("sha256")
    path.with_suffix(".json").write_text(serialise_manifest(record))


@pytest.mark.parametrize("change, words", [
    (lambda t: t | {"x": t["x"].double()}, "does not hold the tensors"), (lambda t: t | {"x": t["x"][:3]}, "does not hold"),
    (lambda t: t | {"more": t["x"].clone()}, "does not hold"), (lambda t: {"x": t["x"], "states": t["states"]}, "not hold"),
    (lambda t: t | {"x": t["x"].reshape(4, 8, 8, 1)}, "does not hold"),
    (lambda t: t | {"labels": t["labels"] ^ 1}, "other labels than those of its seed"),
    (lambda t: {name: torch.zeros(0) for name in t}, "does not hold"), (lambda t: {}, "cannot be read")])
def test_a_shard_of_other_tensors_is_refused_however_well_it_is_signed(folder, change, words):
    tensors = change(load_file(folder / "00001.safetensors"))
    pairs = open_pairs(folder)
    resign(folder, 1, tensors)
    assert words in refusal(pairs.sample, 5)


def test_a_shard_of_other_settings_is_refused(folder):
    resign(folder, 1, settings="0" * 64)
    assert "of other settings" in refusal(open_pairs(folder).sample, 5)


def rewrite(folder, settings: dict, changes: dict) -> None:
    record = json.loads((folder / "pairs.json").read_text())
    record.pop("sha256")
    record["settings"] |= settings
    (folder / "pairs.json").write_text(serialise_manifest(record | changes))


@pytest.mark.parametrize("settings, words", [
    ({"num": 0}, "cannot have num=0"), ({"num": 10**12}, "cannot have num"), ({"num": 11.0}, "cannot have num"),
    ({"num": 10**7}, "missing or cut short"), ({"shard": 0}, "cannot have shard"), ({"num": True}, "cannot have num"),
    ({"shape": [10**6, 10**6]}, "cannot have shape"), ({"shape": []}, "cannot have shape"), ({"shape": 3}, "must be lists"),
    ({"shape": [1, -8, -8]}, "cannot have shape"), ({"shape": [1, 2**13, 2**13]}, "missing or cut short"),
    ({"times": [0.0, 1.0]}, "cannot have times"), ({"times": [1.0]}, "cannot have times"), ({"times": ["x", 0]}, "times"),
    ({"t_max": -1.0}, "cannot have t_max"), ({"t_max": "x"}, "cannot have t_max"),
    ({"dtype": "float8"}, "cannot have dtype"), ({"dtype": {}}, "cannot have dtype"),
    ({"num_classes": 10**9}, "cannot have num_classes"), ({"seed": -1}, "cannot have seed"),
    ({"extra": 1}, "the settings must be"), ({"teacher": None}, "cannot have teacher")])
def test_hostile_settings_are_one_line(folder, settings, words):
    rewrite(folder, settings, {})
    assert words in refusal(open_pairs, folder)


@pytest.mark.parametrize("changes, words", [
    ({"format": "other"}, "of the format 'other'"), ({"version": 2}, "version 2"),
    ({"settings": None}, "the settings must be"),
    ({"settings": [1]}, "the settings must be")])
def test_other_formats_are_one_line(folder, changes, words):
    rewrite(folder, {}, changes)
    assert words in refusal(open_pairs, folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "[" * 10**5, "\0", "{}", '{"sha256": 3}'])
def test_a_record_that_is_none_is_one_line(folder, text):
    (folder / "pairs.json").write_text(text)
    refusal(open_pairs, folder)


def test_settings_survive_json_and_differences_are_named(drawn):
    settings = open_pairs(drawn).settings
    again = PairSettings.parse(json.loads(json.dumps(asdict(settings))))
    assert again == settings and again.digest() == settings.digest() and find_difference(again, settings) is None
    assert [len(settings.find_numbers(k)) for k in range(settings.shards)] == [4, 4, 3]
    other = PairSettings(**asdict(settings) | {"sampler": "euler:10"})
    assert find_difference(settings, other) == "their sampler is heun:4, not euler:10"
    assert other.digest() != settings.digest()


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "OPEN_FILES", 2)
    pairs = draw_pairs(tiny_teacher(), tmp_path / "p", 8, sampler="euler:2", shard=1)
    first = [pairs.sample(k)["y"] for k in range(8)]
    assert len(pairs._files) == 2 and torch.equal(torch.from_numpy(np.stack(first)), solutions(tmp_path / "p"))
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda k: pairs.sample(k % 8)["y"], range(200)))
    assert all(np.array_equal(y, first[k % 8]) for k, y in enumerate(again))
