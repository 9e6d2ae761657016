"""Reflow against a plain transcription of its paper; its lines, its options, its stages and their runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.pairs import open_pairs
from pidistill.files.reading import read_json
from pidistill.jobs.distill import distil_in_steps, resume_distillation, run_distillation
from pidistill.jobs.stages import list_stages
from pidistill.models.denoiser import Preconditioned
from pidistill.models.samplers.base import Sampler
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Setup
from pidistill.objectives.rectified_flow import RectifiedFlow
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.helpers import CLASSES, MLP, SHAPE, draw, grid_of, shake, tiny_teacher
from tests.mixtures import SEEDS, SPEC, distil_mixture, draw_exactly, measure_start, sliced_wasserstein
from tests.models.test_preconditioning import SPECS
from tests.pairs import Held, solve_pairs


def make(teacher=None, data=None, **options) -> RectifiedFlow:
    teacher = teacher or tiny_teacher()
    student = shake(make_student(teacher, **RectifiedFlow.plan_student(teacher, options, None)), seed=1, scale=0.03)
    data = data or solve_pairs(teacher, 8, 0, steps=3)
    return RectifiedFlow(Setup(student, teacher, grid_of(teacher, 10), data), **options)


# The mathematics -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_paper():
    """Liu et al. (2023), Eq. 1: |(X_1 - X_0) - v(X_s, s)|^2, of a network of X_s = s X_1 + (1 - s) X_0 that gives v."""
    objective = make()
    student = objective.networks["student"].double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in
             draw(objective, range(16)).items()}
    X_0, X_1 = batch["z"] / (1 + 80), batch["y"]
    r = batch["t"] / (1 + batch["t"]) * 81 / 80
    torch.testing.assert_close(batch["t"], r * (80 / 81) / (1 - r * (80 / 81)))  # noise over signal, std(X_0) = 80/81
    s = (1 - r)[:, None, None, None]
    X_s = s * X_1 + (1 - s) * X_0

    def v(X, s):
        t = batch["t"][:, None, None, None]
        return (X - student((1 + t) * X, batch["t"], batch["labels"])) / (s - 1)

    plain = ((X_1 - X_0) - v(X_s, s)).square().flatten(1).mean(1)
    torch.testing.assert_close(objective.loss(batch), plain, rtol=1e-5, atol=0)


def test_a_straight_flow_is_followed_exactly_in_any_steps():
    """With D = y on the lines of the loss, every sampler goes from z to y: the loss and the samplers have the same flow."""
    z, y = 80 * torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    seen = []

    def denoise(x, t, labels=None):
        seen.append((x, t))
        return y

    for steps in (1, 2, 7):
        *_, (_, x) = Sampler("heun", steps).integrate(denoise, z, Sampler("heun", steps).times(tiny_teacher()))
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    for x, t in seen:
        torch.testing.assert_close(x, (1 - t / 80) * y + t / 80 * z, rtol=0, atol=1e-8)  # / 0.002


def test_the_loss_asks_on_that_line():
    objective, seen = make(), []
    batch = draw(objective, range(6))
    objective.networks["student"].register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    objective.loss(batch)
    (x, t), = seen
    share = t[:, None, None, None] / 80
    torch.testing.assert_close(x, (1 - share) * batch["y"] + share * batch["z"], rtol=1e-5, atol=1e-5)


def test_times_are_uniform_in_the_share_of_the_noise():
    objective = make()
    t = draw(objective, range(2000))["t"].double().numpy()
    r = t / (1 + t) * 81 / 80
    assert t.min() >= 0.002 * (1 - 1e-6) and t.max() <= 80 and r.min() < 0.005 and r.max() > 0.995
    assert np.abs(np.sort(r) - (np.arange(2000) + 0.5) / 2000).max() < 0.04  # Kolmogorov and Smirnov: 0.036 at 1 %


def test_times_are_those_that_the_teacher_knows():
    teacher = Preconditioned(tiny_teacher().model, SHAPE, CLASSES, preconditioning=SPECS["epsilon"], t_min=0.1, t_max=20)
    drawn = draw(make(teacher, Held(y=torch.zeros(2, *SHAPE), z=torch.zeros(2, *SHAPE))), range(200))["t"]
    assert torch.isin(drawn, teacher.times.float()).all() and len(drawn.unique()) > 10


@pytest.mark.parametrize("options, words", [
    ({"reflows": 0}, "reflows must be 1 to 10, got 0"), ({"reflows": 11}, "got 11"), ({"distil": "l2"}, "distil must be")])
def test_what_means_nothing_is_one_line(options, words, tmp_path):
    config = configure(tmp_path, objective={"name": "rectified_flow"} | options)
    for refuse in (lambda: make(**options), lambda: list_stages(config)):
        with pytest.raises(PidistillError, match=words):
            refuse()


# Runs ----------------------------------------------------------------------------------------------------------------------

TEACHER = "gaussian:2,modes=4,std=0.1,classes"


def configure(folder, **values) -> DistillConfig:
    options = {"teacher": TEACHER, "out": str(folder), "student": {"init": "random", "net": MLP}, "train.steps": 4,
               "train.batch": 8, "log.every": 2, "checkpoint.every": 2, "optimizer.lr": 1e-2, "ema": 0.9, "evaluate.num": 4,
               "preview.every": 100, "pairs": {"num": 32, "sampler": "heun:4"}, "objective": {"name": "rectified_flow"}}
    return load_config(DistillConfig, "default", options | values)


def weights(folder) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load_student(folder).parameters()])


def test_stages_straighten_and_then_distil(tmp_path):
    distil = {"train": {"steps": 9}, "objective": {"distance": "l1"}}
    stages = list_stages(configure(tmp_path, objective={"name": "rectified_flow", "reflows": 2, "distil": distil}))
    assert [*stages] == ["1-rectified_flow", "2-rectified_flow", "3-knowledge"]
    first, second, last = stages.values()
    assert first.objective == second.objective == {"name": "rectified_flow", "distil": False}
    assert last.objective == {"name": "knowledge", "distance": "l1"}
    assert [stage.teacher for stage in stages.values()] == [TEACHER, "previous", "previous"]
    assert [stage.student.init for stage in stages.values()] == ["random", "previous", "previous"]
    assert [stage.data for stage in stages.values()] == [None, "teacher", "teacher"]
    assert [stage.pairs.seed for stage in stages.values()] == [None, 1, 2]
    assert list_stages(configure(tmp_path, **{"pairs.seed": 7}))["2-knowledge"].pairs.seed == 8
    assert [stage.train.steps for stage in stages.values()] == [4, 4, 9]
    alone = list_stages(configure(tmp_path, objective={"name": "rectified_flow", "distil": False}))
    assert [*alone] == ["1-rectified_flow"] and list_stages(first) == {"1-rectified_flow": first}
    with pytest.raises(PidistillError, match=r"objective\.distil: train\.step: extra inputs"):
        list_stages(configure(tmp_path, objective={"name": "rectified_flow", "distil": {"train": {"step": 1}}}))


def test_every_stage_has_pairs_of_its_own_teacher(tmp_path):
    """The last student learns what the reflowed one draws, at noise that the first stage has not seen."""
    run_distillation(configure(tmp_path / "run"))
    flow = load_student(tmp_path / "run" / "1-rectified_flow")
    first, last = (open_pairs(tmp_path / "run" / name / "pairs") for name in ("1-rectified_flow", "2-knowledge"))
    first, last = ({key: torch.from_numpy(np.stack([pairs.sample(k)[key] for k in range(32)])) for key in pairs.sample(0)}
                   for pairs in (first, last))
    sampler = Sampler("heun", 4)
    for teacher, pairs in ((load_teacher(TEACHER), first), (flow_teacher(flow), last)):
        *_, (_, y) = sampler.integrate(teacher, pairs["z"], sampler.times(teacher), pairs["labels"])
        torch.testing.assert_close(pairs["y"], y.detach(), rtol=1e-5, atol=1e-5)
    assert not torch.isin(first["z"], last["z"]).any()
    assert flow.times is None and load_student(tmp_path / "run").times == (80.0, 0.0)
    assert read_json(tmp_path / "run" / "student" / "provenance.json")["teacher"] == TEACHER


def flow_teacher(student) -> Preconditioned:
    return Preconditioned(student.net, student.shape, student.num_classes, sigma_data=student.sigma_data)


@pytest.mark.parametrize("stage, step", [("1-rectified_flow", 3), ("1-rectified_flow", 4), ("2-knowledge", 2)])
def test_a_distillation_that_was_left_goes_on_bit_for_bit(tmp_path, stage, step):
    run_distillation(configure(tmp_path / "whole"))
    for taken in distil_in_steps(configure(tmp_path / "left")):
        if (taken.folder.name, taken.number) == (stage, step):
            break
    resume_distillation(tmp_path / "left")
    for name in ("1-rectified_flow", "2-knowledge", ""):
        assert torch.equal(weights(tmp_path / "left" / name), weights(tmp_path / "whole" / name)), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_is_learned(tmp_path, seed):
    """Sliced Wasserstein distances from exact draws. Reflow makes one step of Euler's method good; distillation, better."""
    exact = draw_exactly(load_teacher(SPEC), 1)
    student = distil_mixture(tmp_path / "run", seed, {
        "objective": "rectified_flow", "pairs.num": 20_000, "train.steps": 1000, "optimizer.lr": 1e-2})
    flow = load_student(tmp_path / "run" / "1-rectified_flow")
    before, after = measure_start(seed, exact), sliced_wasserstein(student.sample(SEEDS), exact)
    steps = {k: sliced_wasserstein(flow.sample(SEEDS, steps=k), exact) for k in (1, 8)}
    print(f"sliced Wasserstein distance {before:.4f} at the start, {after:.4f} after; the flow's by steps {steps}")
    assert after < 0.06 and after < before / 7 and after < steps[1]
