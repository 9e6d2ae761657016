"""Distillation with an equilibrium network against a plain transcription; other networks; a run of its own pairs."""

from __future__ import annotations

import pytest
import torch

import pidistill
from pidistill.core.errors import PidistillError
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.objectives.base import Setup
from pidistill.objectives.equilibrium import Equilibrium
from pidistill.training.log import read_metrics
from tests.helpers import MadePairs, draw, grid_of, shake, tiny_teacher
from tests.pair_runs import BLACK_BOX, check_interruptions, count_of, overrides

NET = {"name": "equilibrium", "width": 16, "heads": 2, "injection": 1, "equilibrium": 1, "expansion": 2, "iterations": 3}
RUN = {"objective": "equilibrium", "student.net": NET}


def make(data=None, **options) -> Equilibrium:
    teacher = tiny_teacher()
    student = shake(make_student(teacher, "random", NET, form="direct"), seed=1)
    return Equilibrium(Setup(student, teacher, grid_of(teacher, 10), data or MadePairs()), **options)


@pytest.mark.parametrize("options, p", [({}, 1), ({"distance": "l2"}, 2)])
def test_the_loss_is_that_of_the_paper(options, p):
    """The network is given the noise with unit variance and the class, and gives the image."""
    objective = make(**options)
    net = objective.networks["student"].double().net
    batch = {key: value.double() if value.is_floating_point() else value
             for key, value in draw(objective, range(4)).items()}
    image = net(batch["z"] / (80**2 + 0.5**2) ** 0.5, torch.zeros(4), batch["labels"])
    expected = (image - batch["y"]).abs().pow(p).flatten(1).mean(1)
    torch.testing.assert_close(objective.loss(batch), expected, rtol=1e-9, atol=0)


def test_a_pair_is_drawn_with_its_label_and_without_states():
    objective = make(MadePairs(times=(2.0, 0.0)))
    batch = draw(objective, range(30))
    assert batch.keys() == {"z", "y", "labels"} and batch["y"].shape == (30, 1, 8, 8)
    pairs = {float(pair["z"].sum()): pair for pair in map(objective.data.sample, range(6))}
    for z, y, label in zip(batch["z"], batch["y"], batch["labels"], strict=True):
        pair = pairs[float(z.numpy().sum())]
        assert torch.equal(torch.from_numpy(pair["y"]), y) and pair["labels"] == label


def test_other_networks_and_data_are_refused(tmp_path):
    for changes in ({}, {"student.net": "mlp"}, {"student.init": "teacher"}):
        settings = overrides({"objective": "equilibrium"} | changes)
        if settings["student.init"] == "teacher":
            settings.pop("student.net")
        with pytest.raises(PidistillError, match=r"student\.net=equilibrium; the student's is (mlp|song_unet)") as caught:
            pidistill.distill(tiny_teacher(), preset="default", out=tmp_path / "run", overrides=settings)
        assert "\n" not in str(caught.value)
    teacher = tiny_teacher()
    with pytest.raises(PidistillError, match="needs pairs of noise"):
        Equilibrium(Setup(make_student(teacher, "random", NET, form="direct"), teacher, grid_of(teacher, 10)))


@pytest.mark.parametrize("half", [False, True])
def test_a_run_draws_its_pairs_and_its_student_draws_images(tmp_path, half):
    student = pidistill.distill(BLACK_BOX, out=tmp_path / "run", overrides=overrides(RUN) | {
        "pairs.half": half, "train.steps": 30})
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert losses[-1] < losses[0] and student.form == "direct" and student.net_spec["name"] == "equilibrium"
    images = student.sample(range(4))
    assert images.shape == (4, 1, 4, 4) and torch.equal(images, load_student(tmp_path / "run").sample(range(4)))
    assert student.net.eval_iterations == 3


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    check_interruptions(tmp_path, monkeypatch, RUN)


def test_a_dry_run_counts_iterations():
    count = lambda iterations: count_of("digits", {
        "objective": {"name": "equilibrium"}, "student.init": "random",
        "student.net": NET | {"iterations": iterations, "unroll": iterations}})["equilibrium"]
    one, two, four = map(count, (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02) and two > one
