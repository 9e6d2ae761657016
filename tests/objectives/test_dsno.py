"""DSNO against a plain transcription; what each option does; a run of its own pairs, and what asks its student."""

from __future__ import annotations

import pytest
import torch

import pidistill
from pidistill.core.errors import PidistillError
from pidistill.core.seeds import noise
from pidistill.jobs.trajectory import compute_trajectories, draw_trajectory_of_spec
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from pidistill.objectives.base import Setup
from pidistill.objectives.dsno import DSNO, choose_student_times
from pidistill.training.log import read_metrics
from tests.helpers import MadePairs, draw, grid_of, shake, tiny_teacher
from tests.pair_runs import BLACK_BOX, check_interruptions, count_of, overrides

TIMES = (20.0, 2.0, 0.5, 0.0)
RUN = {"objective": "dsno", "pairs.trajectory": 3}


def make(teacher=None, times=TIMES, **options) -> DSNO:
    teacher = teacher or tiny_teacher()
    data = MadePairs(shape=teacher.shape, classes=teacher.num_classes, times=times)
    student = shake(make_student(teacher, **DSNO.plan_student(teacher, {}, data)), seed=1, scale=0.03)
    return DSNO(Setup(student, teacher, grid_of(teacher, 10), data), **options)


def transcribe(objective: DSNO, batch, weights, p: int = 1) -> torch.Tensor:
    """The loss, state by state: Eq. (7) at each time, in coordinates of a process that preserves variance."""
    student, times = objective.networks["student"], [*TIMES[:-1], 0.002]
    M, B = len(times), len(batch["z"])
    u = batch["z"] / (80**2 + 0.5**2) ** 0.5
    noise = torch.tensor(times, dtype=torch.float64).log() / 4
    F = student.net(u.repeat_interleave(M, 0), noise.repeat(B), batch["labels"].repeat_interleave(M)).unflatten(0, (B, M))
    total = 0
    for m, (t, weight) in enumerate(zip(times, weights, strict=True)):
        x = t / 80 * batch["z"] + (1 - t / 80) * F[:, m]
        total = total + weight * ((x - batch["states"][:, m]) / (1 + t**2) ** 0.5).abs().pow(p).flatten(1).mean(1)
    return total / sum(weights)


@pytest.mark.parametrize("options, weights, p", [
    ({}, (1, 1, 2, 500), 1), ({"weighting": "uniform"}, (1, 1, 1, 1), 1), ({"distance": "l2"}, (1, 1, 2, 500), 2)])
def test_the_loss_is_that_of_the_paper(options, weights, p):
    """Published weights of CIFAR-10: the root of the signal-to-noise ratio, 1/t, and 1 at least."""
    objective = make(**options)
    objective.networks["student"].double()
    batch = {key: value.double() if value.is_floating_point() else value
             for key, value in draw(objective, range(4)).items()}
    torch.testing.assert_close(objective.loss(batch), transcribe(objective, batch, weights, p), rtol=1e-9, atol=0)


def test_a_pair_is_drawn_with_its_states_and_label():
    objective = make()
    batch = draw(objective, range(50))
    assert batch.keys() == {"z", "states", "labels"} and batch["states"].shape == (50, 4, 1, 8, 8)
    pairs = {float(pair["z"].sum()): pair for pair in map(objective.data.sample, range(6))}
    for z, states, label in zip(batch["z"], batch["states"], batch["labels"], strict=True):
        pair = pairs[float(z.numpy().sum())]
        assert torch.equal(torch.from_numpy(pair["states"]), states) and pair["labels"] == label
    assert len({float(z.sum()) for z in batch["z"]}) == 6  # all of the pairs


def test_the_student_begins_as_one_without_temporal_layers():
    teacher, data = tiny_teacher(), MadePairs(times=TIMES)
    student = make_student(teacher, **DSNO.plan_student(teacher, {}, data))
    assert (student.form, student.times, student.net_spec["temporal"]) == ("operator", (20.0, 2.0, 0.5, 0.002), 4)
    z, y, plain = torch.randn(2, 1, 8, 8) * 80, torch.tensor([0, 2]), make_student(teacher)
    states = student.list_states(z, y)
    for m, t in enumerate(student.times):
        torch.testing.assert_close(states[:, m], plain(z, t, y), rtol=1e-5, atol=1e-5)


def test_its_notes_are_distances_of_images():
    objective = make(weighting="uniform")
    batch = draw(objective, range(4))
    total, count = (objective.loss(batch), objective.notes["distance/image"])[1].tolist()
    image = objective.networks["student"].generate(batch["z"], batch["labels"])
    expected = (image - batch["states"][:, -1]).abs().flatten(1).mean(1).sum()
    assert count == 4 and total == pytest.approx(expected.item(), rel=1e-4)


def test_other_students_and_data_are_refused():
    teacher = tiny_teacher()
    data = MadePairs(times=TIMES)
    plain = make_student(teacher)
    other = make_student(teacher, form="operator", times=(20.0, 1.0), extension={"temporal": 2})
    for student, words in ((plain, "the student is of the form trajectory, at no times"), (other, r"at \(20.0, 1.0\)")):
        with pytest.raises(PidistillError, match=rf"at 20, 2, 0\.5, 0\.002; .*{words}"):
            DSNO(Setup(student, teacher, grid_of(teacher, 10), data))
    for pairs in (None, MadePairs()):
        with pytest.raises(PidistillError, match="dsno needs pairs with states"):
            DSNO.plan_student(teacher, {}, pairs)
    with pytest.raises(PidistillError, match=r"objective.*weighting|weighting.*snr"):
        pidistill.distill("gaussian:2", out="never", overrides=overrides(RUN) | {"objective.weighting": "none"})


def test_a_state_at_eps_beside_the_solution_is_refused():
    """Karras's grid ends in eps, and then 0."""
    with pytest.raises(PidistillError, match=r"the states at 0\.002 and 0 are one .* keep fewer than 4"):
        choose_student_times(MadePairs(times=(20.0, 2.0, 0.002, 0.0)), tiny_teacher())
    assert choose_student_times(MadePairs(times=(20.0, 0.003, 0.0)), tiny_teacher()) == (20.0, 0.003, 0.002)


@pytest.mark.parametrize("half", [False, True])
def test_a_run_draws_its_trajectories_and_its_student_is_asked_like_others(tmp_path, half):
    """A black box teaches a network that gets temporal layers; sampling, evaluation and `trajectory` follow."""
    student = pidistill.distill(BLACK_BOX, out=tmp_path / "run",
                                overrides=overrides(RUN) | {"pairs.half": half, "train.steps": 20, "optimizer.lr": 1e-2})
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert losses[-1] < losses[0] and student.net_spec["temporal"] == 3 and len(student.times) == 3
    images = student.sample(range(4))
    assert images.shape == (4, 1, 4, 4) and torch.equal(images, load_student(tmp_path / "run").sample(range(4)))
    line = draw_trajectory_of_spec(str(tmp_path / "run"), tmp_path / "t.png", "0-1")
    assert line.startswith("2 trajectories in") and (tmp_path / "t.png").stat().st_size > 100
    with pytest.raises(PidistillError, match=r"knows the times .*, not 1$"):
        student(torch.zeros(1, 1, 4, 4), 1.0, torch.tensor([0]))


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    check_interruptions(tmp_path, monkeypatch, RUN)


def test_a_dry_run_counts_all_times():
    """A sample is M passes of the network forward, and twice that backward."""
    count = lambda M: count_of("digits", {"objective": {"name": "dsno"}, "pairs.trajectory": M})["dsno"]
    assert count(8) == pytest.approx(2 * count(4), rel=0.05)


def test_the_times_of_a_trajectory_are_those_of_an_operator():
    teacher = gaussian("1x4x4,mean=0.2,std=0.5")
    plan = {"form": "operator", "times": (20.0, 1.0, 0.002), "extension": {"temporal": 3}}
    student = make_student(teacher, "random", {"name": "mlp", "width": 8, "depth": 1}, **plan).eval()
    ts, ours, theirs = compute_trajectories(student, teacher, [3, 4], None, columns=10, substeps=20)
    assert ts.tolist() == [20.0, 1.0, 0.002] and ours.shape == theirs.shape == (3, 2, 1, 4, 4)
    z = noise([3, 4], teacher.shape) * 80
    for t, x in zip(ts.tolist(), theirs):
        torch.testing.assert_close(x, teacher.exact(z, t), rtol=1e-3, atol=5e-3)
    torch.testing.assert_close(ours.movedim(0, 1), student.list_states(z).detach())
    few, *_ = compute_trajectories(student, teacher, [3], None, columns=2)
    assert few.tolist() == [20.0, 0.002]
