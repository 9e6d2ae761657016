"""What a distillation's settings make of an objective, and what they cannot have together."""

from __future__ import annotations

import sys

import pytest

import pidistill
from pidistill.core.errors import PidistillError
from pidistill.files.pairs import PlannedPairs
from pidistill.jobs.build_objective import build_objective, open_data
from pidistill.jobs.pairs import draw_pairs
from pidistill.models.denoiser import Denoiser
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Objective
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config

QUICK = {"student.init": "random", "student.net": {"name": "mlp", "width": 8, "depth": 1}, "train.steps": 2,
         "train.batch": 4, "evaluate.num": 4, "grid.points": 10}
SPEC = "gaussian:2,modes=4,std=0.1"
CLASSES = f"{SPEC},classes"


@pytest.mark.parametrize("changes, words", [
    ({"objective": "edm"}, "the objective edm trains a teacher: pidistill train-teacher"),
    ({"data": "digits"}, "the objective pid needs no images; leave `data` out"),
    ({"objective": "python:builtins:dict"}, r"python:builtins:dict must be a subclass of pidistill\.Objective")])
def test_what_a_distillation_cannot_minimise_is_refused(tmp_path, changes, words):
    with pytest.raises(PidistillError, match=words) as caught:
        pidistill.distill(SPEC, out=tmp_path / "run", overrides=QUICK | changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


MINE = """
from pidistill.objectives.distances.l1 import L1
from pidistill.objectives.pid import PID
from pidistill.objectives.schemes.upwind import Upwind

class Mine(PID):
    def __init__(self, setup, *, gain: float = 1.0, **options):
        super().__init__(setup, scheme="python:pidistill_mine:Slow", distance={"name": "python:pidistill_mine:Far"})
        self.gain = gain

    def loss(self, batch, step=0):
        return self.gain * super().loss(batch, step)

class Far(L1):
    pass

class Slow(Upwind):
    pass
"""


def test_a_users_own_objective_is_trained(tmp_path, monkeypatch):
    """With a distance and a scheme of the user's own too: here all of them ours under other names, and a gain."""
    (tmp_path / "pidistill_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    own = {"name": "python:pidistill_mine:Mine", "gain": 3}
    try:
        mine, ours = ([step.losses["pid"] for step in pidistill.steps(
            SPEC, out=tmp_path / name, overrides=QUICK | {"objective": objective, "train.steps": 1})]
            for name, objective in (("mine", own), ("ours", {"name": "pid", "distance": "l1"})))
        assert mine == pytest.approx([3 * loss for loss in ours], rel=1e-6) and len(ours) == 1
        config = load_config(DistillConfig, tmp_path / "mine" / "config.yaml")
        made = build_objective(config, load_teacher(SPEC))
        assert type(made).__name__ == "Mine" and type(made.scheme).__name__ == "Slow" and made.gain == 3
    finally:
        sys.modules.pop("pidistill_mine", None)


# Images and pairs --------------------------------------------------------------------------------------------------------


class Reader(Objective):
    """Needs what a subclass says, and is never built."""

    def phases(self):
        return []


class ReadsImages(Reader):
    needs = "images"


class ReadsPairs(Reader):
    needs = "pairs"


class ReadsTrajectories(Reader):
    needs = "trajectories"


def open_for(member: type, teacher: Denoiser, **changes):
    name = f"python:tests.jobs.test_build_objective:{member.__name__}"
    settings = {"objective": {"name": name}, "pairs.num": 6, "pairs.sampler": "heun:6", "out": "x"}
    return open_data(load_config(DistillConfig, "default", QUICK | settings | changes), teacher)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder of the pairs of a mixture with classes, and one that has their states too."""
    folder, teacher = tmp_path_factory.mktemp("pairs"), load_teacher(CLASSES)
    draw_pairs(teacher, folder / "plain", 4, sampler="heun:4")
    draw_pairs(teacher, folder / "states", 4, sampler="heun:6", trajectory=2)
    return folder


def test_pairs_are_opened_or_planned(pairs):
    teacher = load_teacher(CLASSES)
    assert open_for(ReadsPairs, teacher, data=str(pairs / "plain")).folder == pairs / "plain"
    assert open_for(ReadsPairs, teacher, data=str(pairs / "states")).times  # states do no harm
    assert len(open_for(ReadsTrajectories, teacher, data=str(pairs / "states")).times) == 2
    for member, changes, times in ((ReadsPairs, {}, 0), (ReadsPairs, {"data": "teacher"}, 0),
                                   (ReadsImages, {"data": "teacher"}, 0), (ReadsTrajectories, {"pairs.trajectory": 3}, 3)):
        planned = open_for(member, teacher, **changes)
        assert isinstance(planned, PlannedPairs) and (len(planned), len(planned.times)) == (6, times)
        assert (planned.shape, planned.num_classes, planned.t_max, planned.seed) == ((2,), 4, 80.0, 0)
    assert open_for(ReadsPairs, teacher, **{"train.seed": 5}).seed == 5
    assert open_for(ReadsPairs, teacher, **{"train.seed": 5, "pairs.seed": 6}).seed == 6


@pytest.mark.parametrize("member, spec, changes, words", [
    (ReadsImages, CLASSES, {}, "needs images: data=.*or `teacher` for the teacher's own samples"),
    (ReadsPairs, CLASSES, {"data": "digits"}, "needs pairs of noise and the teacher's solution, which data=digits has not"),
    (ReadsPairs, CLASSES, {"data": "{pairs}"}, "needs pairs of noise"),
    (ReadsTrajectories, CLASSES, {}, r"needs states between noise and image: pairs\.trajectory=4"),
    (ReadsTrajectories, CLASSES, {"data": "teacher"}, r"pairs\.trajectory=4"),
    (ReadsTrajectories, CLASSES, {"data": "{pairs}/plain"}, "has solutions alone; draw pairs with --trajectory"),
    (ReadsPairs, "gaussian:3,modes=4,classes", {"data": "{pairs}/plain"}, r"of shape \(2,\), the teacher's are \(3,\)"),
    (ReadsPairs, "gaussian:2,modes=5,classes", {"data": "{pairs}/plain"}, "pairs in 4 classes, the teacher has 5"),
    (ReadsPairs, SPEC, {"data": "{pairs}/plain"}, "has pairs in 4 classes, the teacher has none"),
    (ReadsPairs, CLASSES, {"pairs.sampler": "ddpm:4"}, "adds noise"),
    (ReadsTrajectories, CLASSES, {"pairs.trajectory": 50}, "has 2 to 6 states, got 50")])
def test_pairs_that_do_not_suit_are_one_line(pairs, member, spec, changes, words):
    changes = {key: value.format(pairs=pairs) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(PidistillError, match=words) as caught:
        open_for(member, load_teacher(spec), **changes)
    assert "\n" not in str(caught.value)


def test_pairs_of_another_noise_are_one_line(pairs):
    teacher = load_teacher(CLASSES)
    teacher.t_max = 40.0
    with pytest.raises(PidistillError, match=r"plain has noise of T=80, the teacher's is 40"):
        open_for(ReadsPairs, teacher, data=str(pairs / "plain"))
