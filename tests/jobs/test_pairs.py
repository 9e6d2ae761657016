"""Drawing pairs: the same files however it is interrupted and shared, and one line for what cannot be had."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.files.pairs import open_pairs, read_settings
from pidistill.files.reading import read_json
from pidistill.jobs import pairs as job
from pidistill.jobs.pairs import choose_shard, choose_times, draw_pairs, fill_pairs, plan_pairs
from pidistill.models.samplers.base import parse_sampler
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.gaussian import gaussian
from pidistill.training.config import PairsConfig
from tests.helpers import tiny_teacher
from tests.runs import run_verb

TEACHER = "gaussian:2,modes=4,std=0.2,classes"


def draw(folder, num=10, shard=3, **options):
    return draw_pairs(load_teacher(TEACHER), folder, num, **{"sampler": "heun:4", "shard": shard} | options)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def refusal(function, *args, **options) -> str:
    with pytest.raises(PidistillError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)




def test_solutions_are_near_the_closed_form(tmp_path):
    """With its label a mixture's trajectory is that of the label's Gaussian."""
    pairs, teacher = draw(tmp_path / "p", sampler="heun:60"), load_teacher(TEACHER)
    samples = [pairs.sample(k) for k in range(10)]
    z, labels = torch.from_numpy(np.stack([s["z"] for s in samples])), torch.tensor([int(s["labels"]) for s in samples])
    y = torch.from_numpy(np.stack([s["y"] for s in samples]))
    torch.testing.assert_close(y, teacher.exact(z, 0.0, labels), atol=5e-3, rtol=0)


def test_the_record_says_what_the_pairs_are_and_cost(tmp_path):
    pairs = draw(tmp_path / "p", trajectory=2, half=True, seed=3, batch=2)
    record = read_json(tmp_path / "p" / "pairs.json")
    assert record["evaluations"] == 7 and 0 < record["seconds"] < 60 and record["batch"] == 2
    assert record["settings"] | {"weights": None} == {
        "teacher": TEACHER, "weights": None, "guidance": 1.0, "sampler": "heun:4", "seed": 3, "num": 10, "shape": [2],
        "num_classes": 4, "t_max": 80.0, "times": list(pairs.times), "shard": 3, "dtype": "float16"}
    assert set(record["half_error"]) == {"x", "states"} and 0 < record["half_error"]["x"]["rms"] < 1e-3
    assert record["half_error"]["x"]["largest"] <= record["half_error"]["states"]["largest"] < 0.1
    assert {"commit", "versions", "device"} <= record["provenance"].keys() and TEACHER in record["licence"]
    assert "float16 of the solutions: error at most" in job.describe_cost(pairs)


def test_what_is_there_stays_and_what_is_damaged_or_missing_is_drawn_again(tmp_path, monkeypatch):
    draw(tmp_path / "p")
    before, stamps = contents(tmp_path / "p"), {p: p.stat().st_mtime_ns for p in (tmp_path / "p").glob("*.safetensors")}
    (tmp_path / "p" / "00001.safetensors").write_bytes(before["00001.safetensors"][:-1] + b"x")
    (tmp_path / "p" / "00003.json").unlink()
    (tmp_path / "p" / ".00002.safetensors.999").write_bytes(b"what a killed process left")
    drawn, plain = [], job.draw_shard
    monkeypatch.setattr(job, "draw_shard", lambda *args: drawn.append(args[3]) or plain(*args))
    draw(tmp_path / "p")
    assert drawn == [1, 3] and contents(tmp_path / "p") == before
    assert all((path.stat().st_mtime_ns == stamps[path]) == (path.stem in ("00000", "00002")) for path in stamps)
    assert not list((tmp_path / "p").glob(".*"))
    draw(tmp_path / "p")
    assert drawn == [1, 3]


def test_an_interruption_leaves_whole_shards_and_says_how_it_goes_on(tmp_path, monkeypatch):
    plain = job.draw_shard

    def interrupt(*args):
        if args[3] == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(job, "draw_shard", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"2 of 4 shards stay in .*p; the same command draws the others"):
        draw(tmp_path / "p", batch=2)
    assert "not whole" in refusal(open_pairs, tmp_path / "p")
    monkeypatch.setattr(job, "draw_shard", plain)
    draw(tmp_path / "p")
    assert read_settings(tmp_path / "p")[1]["batch"] == 2  # with which it was begun
    draw(tmp_path / "whole", batch=2)
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


@pytest.mark.parametrize("options, words", [
    ({"sampler": "heun:5"}, "their sampler is heun:4, not heun:5"), ({"seed": 1}, "their seed is 0, not 1"),
    ({"num": 11}, "their num is 10, not 11"), ({"shard": 4}, "their shard is 3, not 4"),
    ({"half": True}, "their dtype is float32, not float16"), ({"trajectory": 2}, "their times is ()")])
def test_a_folder_of_other_pairs_is_refused_and_replaced_by_force(tmp_path, options, words):
    draw(tmp_path / "p")
    before = contents(tmp_path / "p")
    assert words in refusal(draw, tmp_path / "p", **options) and contents(tmp_path / "p") == before
    draw(tmp_path / "p", **options, force=True)
    draw(tmp_path / "q", **options)
    assert contents(tmp_path / "p") == contents(tmp_path / "q") != before


def test_other_weights_are_other_pairs(tmp_path):
    draw_pairs(tiny_teacher(), tmp_path / "p", 2, sampler="euler:2")
    other = tiny_teacher()
    other.model.map_layer0.weight.data += 1
    assert "their weights is" in refusal(draw_pairs, other, tmp_path / "p", 2, sampler="euler:2")


def test_force_replaces_pairs_alone(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "photo.png").write_bytes(b"mine")
    for force in (False, True):
        assert "is not empty and holds no pairs" in refusal(draw, tmp_path / "p", force=force)
    (tmp_path / "file").write_bytes(b"mine")
    assert "holds no pairs" in refusal(draw, tmp_path / "file", force=True)
    draw(tmp_path / "q")
    (tmp_path / "q" / "notes.json").write_text("mine")
    (tmp_path / "q" / "pairs.json").write_text("damaged")
    assert "pairs.json is damaged" in refusal(draw, tmp_path / "q")
    draw(tmp_path / "q", force=True, num=4)
    assert (tmp_path / "q" / "notes.json").read_text() == "mine" and len(contents(tmp_path / "q")) == 2


@pytest.mark.parametrize("text", ["ddpm:4", "ddim,eta=0.5:4", "heun,churn=10:4"])
def test_samplers_that_add_noise_are_refused(tmp_path, text):
    assert "adds noise" in refusal(draw, tmp_path / "p", sampler=text) and not (tmp_path / "p").exists()


@pytest.mark.parametrize("text", ["heun:6", "euler:6", "ddim:6", "ddim,eta=0:6", "dpm_solver2:6", "dpm_solver_fast:6",
                                  "deis3:6", "unipc:6", "dpm_solver_pp:6", "heun,spacing=log:6"])
def test_states_are_those_of_the_sampler_at_its_own_times(tmp_path, text):
    [sampler], teacher = parse_sampler(text), load_teacher(TEACHER)
    trace = sampler.trace(teacher)
    times = choose_times(teacher, sampler, 2)
    assert len(times) == 2 and times[-1] == 0 and set(times) <= set(trace.times)
    assert choose_times(teacher, sampler, None) == ()
    assert choose_times(teacher, sampler, len(trace.times)) == trace.times
    assert f"2 to {len(trace.times)} states, got 99" in refusal(choose_times, teacher, sampler, 99)
    pairs = draw(tmp_path / "p", num=2, sampler=sampler, trajectory=2)
    z, labels = torch.from_numpy(pairs.sample(1)["z"])[None], pairs.labels[1:]
    states = {t: x for t, x in sampler.integrate(teacher, z, sampler.times(teacher), labels)}
    for k, t in enumerate(times):
        assert pairs.sample(1)["states"][k] == pytest.approx(states[t][0].numpy(), abs=1e-4)


def test_shards_are_few_and_large_or_enough_for_several_processes():
    assert [choose_shard(num) for num in (2, 1000, 8000, 16_000, 10**6)] == [250, 250, 500, 1000, 1000]


def test_a_run_plans_its_pairs_and_fills_them(tmp_path):
    config, teacher = PairsConfig(num=5, sampler="heun:3", trajectory=2, half=True), gaussian("2,modes=4,std=0.2,classes")
    with torch.device("meta"):  # as a dry run does
        planned = plan_pairs(teacher, config, 9)
    assert not planned.sample(2)["y"].any() and len(planned.times) == 2
    drawn = fill_pairs(planned, teacher, config, tmp_path / "pairs")
    assert planned.sample(2)["y"].any() and planned.drawn.record["seconds"] > 0 and drawn.settings.dtype == "float16"
    again = plan_pairs(teacher, config, 9)
    fill_pairs(again, teacher, config, tmp_path / "pairs")
    assert all(np.array_equal(again.sample(2)[name], value) for name, value in planned.sample(2).items())
    assert processes.group is None
    for change, words in (({"sampler": "ddpm:4"}, "adds noise"), ({"trajectory": 9}, "2 to 3 states"),
                          ({"sampler": "huen:4"}, "did you mean 'heun'")):
        assert words in refusal(plan_pairs, teacher, config.model_copy(update=change), 9)
    other = plan_pairs(teacher, config, 8)
    assert "their seed is 9, not 8" in refusal(fill_pairs, other, teacher, config, tmp_path / "pairs")


def test_two_processes_write_the_files_of_one(tmp_path):
    flags = ["pairs", "--teacher", TEACHER, "--images", 10, "--shard", 3, "--sampler", "heun:4", "--trajectory", 2,
             "--device", "cpu"]
    two = run_verb(*flags, "--out", tmp_path / "two", processes=2)
    assert two.returncode == 0 and two.stdout.count("10 pairs in") == 1, two.stderr
    draw(tmp_path / "one", trajectory=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one") and len(contents(tmp_path / "one")) == 4
    assert json.loads((tmp_path / "two" / "pairs.json").read_text())["settings"] == json.loads(
        (tmp_path / "one" / "pairs.json").read_text())["settings"]
