"""The contract of objectives: phases over named networks, and copies that follow them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.files.image_set import ImageSet
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.student_init import make_student
from pidistill.objectives.base import BANDS, Follower, Objective, Phase, Setup, TeacherSetup, check_contract
from tests.helpers import grid_of, tiny_teacher


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))


class Example(Objective):
    """Of the networks, calls, followers and phases that a test names."""

    def __init__(self, networks="student", calls=(), followers=None, phases=(("a", "student"),), averaged="student", **more):
        super().__init__({name: network() for name in networks.split()}, dict.fromkeys(calls, network()), followers)
        self.averaged = tuple(averaged.split())
        self._phases = [Phase(name, tuple(trains.split()), self.draw, self.loss, **more) for name, trains in phases]

    def phases(self) -> list[Phase]:
        return self._phases

    def draw(self, rng, step):
        return {"x": rng.standard_normal(2)}

    def loss(self, batch, step):
        return batch["x"].sum(dim=1)


GAN = {"networks": "student critic", "phases": (("draws", "student"), ("tells", "critic"))}
MEAN = Follower("student", lambda step: 0.9)


@pytest.mark.parametrize("options", [
    {}, GAN, GAN | {"averaged": "student critic"}, GAN | {"averaged": ""}, {"every": 5}, {"calls": ["teacher", "distance"]},
    {"followers": {"mean": MEAN, "other": MEAN}}, {"networks": "student critic", "phases": (("both", "student critic"),)},
    {"phases": (("coarse", "student"), ("fine", "student"))}])
def test_what_fits_together_is_taken(options):
    check_contract(Example(**options))


@pytest.mark.parametrize("options, words", [
    ({"phases": (("a-b", "student"),)}, "a phase's name must be an identifier other than `optimizer`, got 'a-b'"),
    ({"phases": (("", "student"),)}, "a phase's name must be an identifier other than `optimizer`, got ''"),
    ({"networks": "student ../x"}, "a network's name must be an identifier other than `optimizer`, got '../x'"),
    ({"networks": "student student-ema-0.9"}, "a network's name must be an identifier .* got 'student-ema-0.9'"),
    ({"networks": "student optimizer"}, "a network's name must be an identifier other than `optimizer`, got 'opt"),
    ({"calls": ["the teacher"]}, "a call's name must be an identifier other than `optimizer`, got 'the teacher'"),
    ({"followers": {"a/b": MEAN}}, "a follower's name must be an identifier other than `optimizer`, got 'a/b'"),
    ({"phases": ()}, r"a step needs phases of different names, got \[\]"),
    ({"phases": (("a", "student"), ("a", "student"))}, r"a step needs phases of different names, got \['a', 'a'\]"),
    ({"phases": (("a", "student"), ("b", ""))}, "the phase b must train a network, in every step or each so many"),
    ({"every": 0}, "the phase a must train a network, in every step or each so many"),
    ({"every": -2}, "the phase a must train a network, in every step or each so many"),
    ({"phases": (("a", "student critic"),)}, r"'critic' is trained or averaged, and is none of its networks \(student\)"),
    (GAN | {"averaged": "generator"}, r"'generator' is trained or averaged, .* networks \(student, critic\)$"),
    ({"calls": ["teacher"], "phases": (("a", "student teacher"),)}, "'teacher' is trained or averaged, and is none of its"),
    ({"followers": {"mean": MEAN}, "averaged": "mean"}, "'mean' is trained or averaged, and is none of its networks"),
    ({"networks": "student idle"}, "no phase trains the network 'idle'; what is only called belongs into `calls`")])
def test_what_does_not_fit_is_refused_in_one_line(options, words):
    with pytest.raises(PidistillError, match=f"^Example: {words}") as caught:
        check_contract(Example(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("every, due, last", [(1, [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]),
                                              (2, [0, 2, 4, 6], [0, 0, 2, 2, 4, 4, 6]),
                                              (5, [0, 5], [0, 0, 0, 0, 0, 5, 5]), (7, [0], [0] * 7)])
def test_a_phase_is_due_every_so_many_steps_from_the_first_on(every, due, last):
    phase, = Example(every=every).phases()
    assert [step for step in range(7) if phase.is_due(step)] == due
    assert [phase.find_last(step) for step in range(7)] == last
    assert all(phase.is_due(phase.find_last(step)) for step in range(100))


def test_a_phase_may_begin_later():
    phase = Phase("late", ("student",), every=2, first=3)
    assert [step for step in range(9) if phase.is_due(step)] == [3, 5, 7]
    assert [phase.find_last(step) for step in range(7)] == [3, 3, 3, 3, 3, 5, 5]


def test_a_follower_of_no_network_is_refused():
    for stray in ("generator", "teacher", "mean"):  # nothing; what is called; another follower
        with pytest.raises(PidistillError, match=f"^Example: a follower of '{stray}', which is no network$"):
            Example(calls=["teacher"], followers={"mean": MEAN, "stray": Follower(stray, lambda step: 0.9)})


def test_followers_begin_as_copies_of_their_networks_and_are_none_of_them():
    objective = Example(**GAN, followers={"mean": MEAN, "slow": Follower("critic", lambda step: 1.0)})
    assert objective.copies.keys() == {"mean", "slow"} == objective.followers.keys()
    networks = objective.networks
    for name, of in (("mean", "student"), ("slow", "critic")):
        held, plain = objective.copies[name], networks[of]
        assert not held.training and plain.training
        assert not any(p.requires_grad for p in held.parameters()) and all(p.requires_grad for p in plain.parameters())
        for (key, a), b in zip(held.state_dict().items(), plain.state_dict().values(), strict=True):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr(), key
        before = copy.deepcopy(held.state_dict())
        with torch.no_grad():
            for p in plain.parameters():
                p += 1
        plain(torch.randn(4, 2))  # moves the buffers too
        assert all(torch.equal(a, b) for a, b in zip(before.values(), held.state_dict().values(), strict=True))


def test_an_objective_keeps_lists_of_its_own():
    """Of what it was given: the trainer puts others into the places."""
    networks, calls = {"student": network()}, {"teacher": network()}

    class Given(Example):
        def __init__(self):
            Objective.__init__(self, networks, calls)

    objective = Given()
    objective.networks["student"] = objective.calls["teacher"] = network()
    assert networks["student"] is not objective.networks["student"] and calls["teacher"] is not objective.calls["teacher"]


def test_what_an_objective_need_not_say():
    objective = Example()
    assert objective.times({"x": torch.zeros(3, 2)}) is None and objective.stages("config") == ["config"]
    assert (Objective.needs, Objective.form, Objective.averaged) == ("noise", "trajectory", ("student",))
    with pytest.raises(TypeError, match="abstract"):
        Objective({"student": network()})


def data_of(*shape: int) -> ImageSet:
    return ImageSet.of(torch.zeros(2, *shape))


@pytest.mark.parametrize("teacher, data", [((3, 8, 8), None), ((1, 8, 4), None), ((1, 8, 8), (3, 8, 8)),
                                           ((1, 8, 8), (1, 8, 1))])
def test_models_and_images_of_several_shapes_are_refused(teacher, data):
    """They would be broadcast."""
    other = FunctionDenoiser(lambda x, t, labels: x, teacher)
    with pytest.raises(PidistillError, match=r"of one shape, got student \(1, 8, 8\), teacher"):
        Setup(make_student(tiny_teacher()), other, grid_of(other, 4), data_of(*data) if data else None)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 1), (1, 4, 8)])
def test_a_teacher_is_trained_on_images_of_its_shape(shape):
    with pytest.raises(PidistillError, match=r"of one shape, got teacher \(1, 8, 8\), data"):
        TeacherSetup(tiny_teacher(), data_of(*shape))


def test_bands_cover_all_levels():
    edges = [edge for band in BANDS.values() for edge in band]
    assert edges[0] == 0 and edges[-1] == math.inf and edges[1:-1:2] == edges[2::2]


def test_notes_by_the_noise_level():
    """Sum and count of each band, whose bounds are sigma_data and ten times that."""
    teacher = tiny_teacher()
    objective = Objective.__new__(Example)
    Objective.__init__(objective, {"student": teacher})
    t = torch.tensor([0.01, 0.99, 1.0, 9.9, 10.0]) * teacher.sigma_data
    for k in range(2):
        objective.note_bands("loss", torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]) + k, t)
    assert {name: pair.tolist() for name, pair in objective.notes.items()} == {
        "loss/low": [8.0, 4.0], "loss/middle": [26.0, 4.0], "loss/high": [33.0, 2.0]}
