"""Averages of any width, of a run that stored profiles, against averages over all its weights."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.profiles import NARROWEST, Profile, Width, combine_profiles, multiply_profiles, solve_gamma
from pidistill.files.folders import write_folder
from pidistill.files.manifest import write_manifest
from pidistill.files.weights import read_tensors
from pidistill.models.load import load_model
from pidistill.models.snapshots import LIMIT, LOOSE, find_profiles, list_snapshots, load_average
from pidistill.models.student import load_student
from pidistill.training.trainer import Watcher, train
from tests.own_nets import SIDE, Normed
from tests.runs import make_run

STEPS, EVERY, STORED = 60, 6, (0.05, 0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with profiles and a student, and its weights after every step, (STEPS, parameters) float64."""
    weights: list[torch.Tensor] = []

    def look(averages, step, folder):
        weights.append(flat(averages[0.0]["student"]).double())

    objective, config, folder = make_run(tmp_path_factory.mktemp("profiles") / "run", {
        "train.steps": STEPS, "ema": [0.9, 0.0], "profiles": {"widths": STORED, "every": EVERY}, "checkpoint.every": 1000})
    trained = train(objective, config, folder, [Watcher(1, look)])
    students = {rate: networks["student"] for rate, networks in trained.averages.items()}
    students[0.9].save(folder / "student", averages=students)
    return folder, torch.stack(weights)


def flat(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def average(weights: torch.Tensor, width: float, step: int) -> torch.Tensor:
    """The average over all weights, by the profile's integral over each step, in float64."""
    edges = (torch.arange(step + 1, dtype=torch.float64) / step) ** (solve_gamma(width) + 1)
    return edges.diff() @ weights[:step]


def bound_rounding(weights: torch.Tensor) -> torch.Tensor:
    """The rounding of a stored average, of each weight: so many updates of float32, each of one unit in the last place."""
    return len(weights) * 2**-24 * weights.abs().amax(0)


@pytest.mark.parametrize("width", STORED)
def test_what_is_stored_is_the_average_over_all_weights(run, width):
    folder, weights = run
    for path in sorted((folder / "profiles").iterdir()):
        tensors = read_tensors(path / f"student-{width}.safetensors")
        found = torch.cat([tensors[name].flatten() for name, _ in load_student(folder).named_parameters()]).double()
        step = int(path.name)
        error = (found - average(weights, width, step)).abs()
        assert (error <= bound_rounding(weights[:step])).all()
    assert (found - weights[-1]).abs().max() > 1e-4
    assert [int(path.name) for path in sorted((folder / "profiles").iterdir())] == [*range(EVERY, STEPS + 1, EVERY)]


@pytest.mark.parametrize("width", [0.03, 0.04, 0.05, 0.07, 0.12, 0.15, 0.2])
@pytest.mark.parametrize("step", [None, 30])
def test_any_width_is_the_average_over_all_weights(run, width, step):
    """Within |d| sqrt(sum_k |theta_k - theta_0|^2), for each weight, and the rounding of what is stored."""
    folder, weights = run
    done, theta = step or STEPS, weights
    stored = list(list_snapshots(folder / "profiles", "student").values())
    asked = Profile(solve_gamma(width), done)
    x, misfit = combine_profiles(stored, [asked])
    d = misfit.item() * multiply_profiles([asked], [asked]).item() ** 0.5
    bound = d * (theta - theta.mean(0)).square().sum(0).sqrt() + np.abs(x).sum() * bound_rounding(theta)
    found = flat(load_student(folder, ema=f"width:{width}" + (f"@{step}" if step else "")))
    error = (found.double() - average(weights, width, done)).abs()
    assert (error <= bound).all()
    nearest = flat(load_student(folder, ema=f"width:{width}"))
    assert torch.equal(found, nearest) == (step is None)  # deterministic; and other steps are other averages
    if width not in STORED and step is None:
        moved = (average(weights, width, done) - average(weights, 0.05, done)).abs().max()
        assert error.max() < 0.2 * moved


def test_constant_rates_are_chosen_as_ever(run):
    folder, weights = run
    assert torch.equal(flat(load_student(folder, ema=0.0)).double(), weights[-1])
    assert torch.equal(flat(load_student(folder, ema="0.0")), flat(load_student(folder, ema=0.0)))
    assert torch.equal(flat(load_student(folder)), flat(load_student(folder, ema=0.9)))


def test_the_folder_of_the_student_and_a_run_in_stages_lead_to_the_profiles(run, tmp_path):
    folder, _ = run
    expected = flat(load_student(folder, ema=Width(0.12)))
    assert torch.equal(flat(load_student(folder / "student", ema="width:0.12")), expected)
    for name in ("1-pid", "2-pid", "10-pid"):
        shutil.copytree(folder / "student", tmp_path / name / "student")
    shutil.copytree(folder / "student", tmp_path / "student")
    shutil.copytree(folder / "profiles", tmp_path / "10-pid" / "profiles")
    assert find_profiles(tmp_path) == tmp_path / "10-pid" / "profiles" == find_profiles(tmp_path / "10-pid")
    for path in (tmp_path, tmp_path / "10-pid"):
        assert torch.equal(flat(load_student(path, ema="width:0.12")), expected)
    with pytest.raises(PidistillError, match="2-pid has stored no profiles of student"):
        load_student(tmp_path / "2-pid", ema="width:0.12")


def test_a_width_that_does_not_fit_is_said_or_refused(run, capsys):
    folder, _ = run
    stored = list(list_snapshots(folder / "profiles", "student").values())
    misfits = dict(zip((0.01, 0.02, 0.24, 0.12), combine_profiles(stored, [
        Profile(solve_gamma(width), STEPS) for width in (0.01, 0.02, 0.24, 0.12)])[1], strict=True))
    assert misfits[0.01] > LIMIT > misfits[0.02] > LOOSE > misfits[0.12]
    load_student(folder, ema="width:0.12")
    assert capsys.readouterr().err == ""
    load_student(folder, ema="width:0.02")
    said = " ".join(capsys.readouterr().err.split())
    assert f"error of the profile of width:0.02 is {misfits[0.02]:.1%} of it: widths 0.0" in said and "within 10%" in said
    with pytest.raises(PidistillError, match=rf"0\.01 cannot be had .* is {misfits[0.01]:.0%} off; widths 0\.0\d\d to"):
        load_student(folder, ema="width:0.01")
    with pytest.raises(PidistillError, match=r"cannot be had .*; width 0\.\d\d\d is the nearest after step 1, \d+% off"):
        load_student(folder, ema="width:0.1@1")


@pytest.mark.parametrize("step", [0, 61])
def test_steps_that_were_not_taken_are_refused(run, step):
    with pytest.raises(PidistillError, match=rf"has no steps after 60, got width:0\.1@{step}"):
        load_student(run[0], ema=f"width:0.1@{step}")


def test_a_run_without_profiles_says_how_to_have_them(run, tmp_path):
    shutil.copytree(run[0] / "student", tmp_path / "student")
    with pytest.raises(PidistillError, match=r"has stored no profiles .*train with --set profiles\.widths=\[0\.05,0\.1\]"):
        load_student(tmp_path, ema="width:0.12")


@pytest.mark.parametrize("damage, said", [
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "is damaged"),
    (lambda path: path.write_bytes(b""), "0 bytes"),
    (lambda path: (path.parent / "manifest.json").unlink(), "manifest.json is missing")])
def test_a_damaged_snapshot_is_one_line(run, tmp_path, damage, said):
    shutil.copytree(run[0], tmp_path / "run")
    damage(tmp_path / "run" / "profiles" / "000036" / "student-0.1.safetensors")
    with pytest.raises(PidistillError, match=said) as caught:
        load_student(tmp_path / "run", ema="width:0.12")
    assert "000036" in str(caught.value) and "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "run" / "profiles" / "000036")  # and what is left still fits
    load_student(tmp_path / "run", ema="width:0.12")


def test_snapshots_of_another_network_are_refused(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    write_folder(tmp_path / "run" / "profiles" / "000036", {"student-0.1": {"x": torch.ones(2)}}, {}, write_manifest)
    with pytest.raises(PidistillError, match=r"000036/student-0\.1\.safetensors does not fit .*weights"):
        load_student(tmp_path / "run", ema="width:0.12")


def test_names_that_are_no_profiles_are_passed_over(tmp_path):
    for name in ("000000/a-0.1", "000002/a-0.1", "000002/a-0.3", f"000002/a-{NARROWEST / 2}", "000002/a-1e-2",
                 "000002/b-0.1", "000002/a-b-0.1", ".000003.gone/a-0.1", "x/a-0.1", "000004.later/a-0.1"):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list_snapshots(tmp_path, "a") == {tmp_path / "000002" / "a-0.1.safetensors": Profile(solve_gamma(0.1), 2)}


def test_buffers_are_the_newest_until_then_and_weights_keep_their_type(tmp_path):
    for step in range(2, 21, 2):
        net = Normed()
        with torch.no_grad():
            net.norm.running_mean.fill_(step)
            net.norm.num_batches_tracked.fill_(step)
            for p in net.parameters():
                p.fill_(step)
        write_folder(tmp_path / "profiles" / f"{step:06d}", {f"net-{width}": dict(net.state_dict()) for width in STORED}, {},
                     write_manifest)
    for step, expected in ((20, 20), (19, 18), (12, 12)):
        net = Normed()
        load_average(net, "net", tmp_path, Width(0.1, step))
        assert (net.norm.running_mean == expected).all() and net.norm.num_batches_tracked == expected
        stored = list(list_snapshots(tmp_path / "profiles", "net").values())
        weights = combine_profiles(stored, [Profile(solve_gamma(0.1), step)])[0][:, 0]
        assert net.first.weight[0, 0].item() == pytest.approx(sum(weights * [p.t for p in stored]), rel=1e-6)
        assert net.first.weight.dtype == torch.float32 and net(torch.zeros(2, SIDE), torch.zeros(2)).isfinite().all()


def test_a_teachers_run_has_profiles_too(cli, tmp_path, images_npz, net_flags):
    done = cli("train-teacher", "--set", f"data={images_npz}", *net_flags, "--set", "train={steps: 6, batch: 4}", "--set",
               "profiles={widths: [0.05, 0.1], every: 1}", "--set", "preview.seeds=0-3", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert cli("sample", tmp_path / "run", "--ema", "width:0.12", "--seeds", "0-1", "--steps", 2,
               "--out", tmp_path / "a.npz").code == 0
    stored = read_tensors(tmp_path / "run" / "profiles" / "000006" / "teacher-0.1.safetensors")
    states = [load_model(str(tmp_path / "run"), Width(width)).state_dict() for width in (0.1, 0.15)]
    for name, value in states[0].items():
        torch.testing.assert_close(value, stored[name], rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert "no student" in cli("sample", tmp_path / "run", "--ema", "0.9", "--out", tmp_path / "c.npz").error()
    assert "one average" in cli("evaluate", tmp_path / "run", "--ema", "width:0.1,width:0.15", "--features", "none").error()
