"""Progressive distillation against plain transcriptions of its paper; its times, its options, its stages and their runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import noise
from pidistill.files.reading import read_json
from pidistill.jobs.distill import distil_in_steps, resume_distillation, run_distillation
from pidistill.jobs.evaluate_run import Protocol, evaluate_model, load_checkpoints, read_first_teacher
from pidistill.jobs.pairs import draw_pairs_of_spec
from pidistill.jobs.stages import list_stages
from pidistill.models.denoiser import FunctionDenoiser, Preconditioned
from pidistill.models.samplers.base import Sampler
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Setup
from pidistill.objectives.progressive import Progressive, list_times
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.helpers import CLASSES, MLP, SHAPE, draw, grid_of, shake, tiny_teacher
from tests.mixtures import SEEDS, SPEC, distil_mixture, draw_exactly, measure_start, sliced_wasserstein
from tests.models.test_preconditioning import SPECS
from tests.pairs import Held

DATA = Held(y=torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(5)) * 2 - 1, labels=torch.arange(12) % CLASSES)


def make(teacher=None, **options) -> Progressive:
    teacher = teacher or tiny_teacher()
    student = shake(make_student(teacher, **Progressive.plan_student(teacher, options, None)), seed=1, scale=0.03)
    return Progressive(Setup(student, teacher, grid_of(teacher, 10), DATA), **options)


def double(objective: Progressive, count: int = 24) -> dict[str, torch.Tensor]:
    """The objective in float64, and a batch of it."""
    for module in (*objective.networks.values(), objective.calls["teacher"]):
        module.double()
    batch = draw(objective, range(count))
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


# The mathematics -----------------------------------------------------------------------------------------------------------


def vp(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of the paper's z = alpha x + sigma eps, alpha^2 + sigma^2 = 1, at t = sigma/alpha, as (B, 1, 1, 1)."""
    alpha = (1 / (1 + t**2).sqrt())[:, None, None, None]
    return alpha, (1 - alpha**2).clamp(min=0).sqrt()


def algorithm_2(objective: Progressive, batch, predict_teacher, predict_student, weight) -> torch.Tensor:
    """Salimans & Ho (2022), Algorithm 2, line by line; a prediction is (z_t, t, labels) -> x."""
    t, t_1, t_2 = (objective.t[2 * batch["i"] + k] for k in range(3))
    y, eps, x = batch["labels"], batch["n"], batch["y"]
    (alpha, sigma), (alpha_1, sigma_1), (alpha_2, sigma_2) = vp(t), vp(t_1), vp(t_2)
    z_t = alpha * x + sigma * eps
    with torch.no_grad():
        x_hat = predict_teacher(z_t, t, y)
        z_1 = alpha_1 * x_hat + sigma_1 / sigma * (z_t - alpha * x_hat)
        x_hat = predict_teacher(z_1, t_1, y)
        z_2 = alpha_2 * x_hat + sigma_2 / sigma_1 * (z_1 - alpha_1 * x_hat)
        x_tilde = (z_2 - sigma_2 / sigma * z_t) / (alpha_2 - sigma_2 / sigma * alpha)
    return (weight(alpha, sigma) * (x_tilde - predict_student(z_t, t, y)) ** 2).flatten(1).mean(1)


def denoised(model):
    """x from the model's own D, asked in the paper's coordinates."""
    return lambda z, t, y: model(z / vp(t)[0], t, y)


WEIGHTS = {"truncated_snr": lambda alpha, sigma: torch.maximum(alpha**2 / sigma**2, torch.ones_like(alpha)),
           "snr_plus_one": lambda alpha, sigma: 1 + alpha**2 / sigma**2}


@pytest.mark.parametrize("spacing", ["karras", "cosine"])
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_the_loss_is_that_of_algorithm_2(weighting, spacing):
    objective = make(weighting=weighting, times=spacing)
    batch = double(objective)
    plain = algorithm_2(objective, batch, denoised(objective.calls["teacher"]), denoised(objective.networks["student"]),
                        WEIGHTS[weighting])
    assert {0, 15} <= {*batch["i"].tolist()}  # from T, and to 0
    torch.testing.assert_close(objective.loss(batch), plain, rtol=1e-5, atol=0)


def predict(net, spec: str):
    """x of the paper's network of z, by what it puts out (Section 4 there)."""
    def x_hat(z, t, y):
        alpha, sigma = vp(t)
        step = torch.tensor([(SIGMAS - u.item()).abs().argmin() for u in t], dtype=torch.float64)
        out = net(z, step, y)
        return {"sample": out, "v_prediction": alpha * z - sigma * out}[spec]
    return x_hat


SIGMAS = torch.tensor(SPECS["v_prediction"]["sigmas"], dtype=torch.float64)


@pytest.mark.parametrize("form", ["sample", "v_prediction"])
def test_networks_of_x_and_of_v(form):
    """With SNR + 1 the loss is the mean square of the difference in v, v = alpha eps - sigma x, line 12 in the v-form."""
    teacher = Preconditioned(tiny_teacher().model, SHAPE, CLASSES, preconditioning=SPECS["v_prediction"] | {"name": form},
                             t_min=0.05, t_max=20)
    objective = make(teacher, steps=4, weighting="snr_plus_one")
    batch = double(objective)
    student, teacher = objective.networks["student"], objective.calls["teacher"]
    predictions = predict(teacher.model, form), predict(student.net, form)
    ours = objective.loss(batch)
    torch.testing.assert_close(ours, algorithm_2(objective, batch, *predictions, WEIGHTS["snr_plus_one"]), rtol=1e-5, atol=0)
    t = objective.t[2 * batch["i"]]
    alpha, sigma = vp(t)
    z = alpha * batch["y"] + sigma * batch["n"]
    v = lambda x: alpha * (z - alpha * x) / sigma - sigma * x  # eps that goes with x
    x_tilde = objective.find_target(z / alpha, *(objective.t[2 * batch["i"] + k] for k in range(3)), batch["labels"])
    plain = (v(x_tilde) - v(predictions[1](z, t, batch["labels"]))).square().flatten(1).mean(1)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)


def test_a_perfect_student_of_two_steps_goes_where_the_teacher_goes():
    """One DDIM step with x~ in the place of D ends where two of the teacher's do; to 0, in its second image."""
    objective = make(steps=2)
    batch = double(objective)
    teacher, i, y = objective.calls["teacher"], batch["i"], batch["labels"]
    t, middle, end = (objective.t[2 * i + k] for k in range(3))
    x = batch["y"] + t[:, None, None, None] * batch["n"]
    target = objective.find_target(x, t, middle, end, y)
    for k in range(len(x)):
        ts = torch.stack([t[k], middle[k], end[k]])
        *_, (_, expected) = Sampler("ddim", 2).integrate(teacher, x[k:k + 1], ts, y[k:k + 1])
        arrived = target[k:k + 1] + end[k] / t[k] * (x[k:k + 1] - target[k:k + 1])
        torch.testing.assert_close(arrived, expected, rtol=1e-9, atol=1e-9)
    assert (end == 0).any() and (end > 0).any()


def test_targets_keep_their_digits_in_float32():
    """At t = 80 of 1024 steps; the difference of noisy states is more than a hundred times worse."""
    teacher = tiny_teacher()
    t, middle, end = (u.expand(16) for u in list_times(teacher, 1024, 1024, "karras")[:3])
    x = 80 * torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    single = make(teacher).find_target(x, t, middle, end, None)
    a, b = (middle / t)[0].float(), (end / middle)[0].float()
    D = teacher(x, t)
    state = D + a * (x - D)
    D = teacher(state, middle)
    differences = (D + b * (state - D) - a * b * x) / (1 - a * b)
    exact = make(teacher.double()).find_target(x.double(), t, middle, end, None)
    ours, theirs = ((value - exact).abs().max() for value in (single, differences))
    assert ours < 1e-5 and theirs > 100 * ours


# Times ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["karras", "cosine"])
def test_all_students_share_the_first_one_s_times(spacing):
    teacher = tiny_teacher()
    fine = list_times(teacher, 8, 8, spacing)
    assert fine[0] == 80 and fine[-2] == 0.002 and fine[-1] == 0 and len(fine) == 17
    for own in (4, 2, 1):
        t = list_times(teacher, 8, own, spacing)
        assert torch.equal(t, fine[::8 // own])
        assert Progressive.plan_student(teacher, {"steps": 8, "student_steps": own, "times": spacing}, None) == {
            "form": "denoiser", "times": t[::2].tolist()}
    if spacing == "karras":
        assert torch.equal(fine, Sampler("ddim", 16).times(teacher))
    else:  # alpha = cos(pi u/2), u even
        u = torch.acos(1 / (1 + fine[:-1] ** 2).sqrt()) / (math.pi / 2)
        torch.testing.assert_close(u.diff(), u.diff()[:1].expand(15), rtol=1e-6, atol=0)


def test_times_are_those_that_the_teacher_knows():
    teacher = Preconditioned(tiny_teacher().model, SHAPE, CLASSES, preconditioning=SPECS["epsilon"], t_min=0.1, t_max=20)
    fine = list_times(teacher, 4, 4, "karras")
    assert torch.isin(fine[:-1], teacher.times).all() and torch.equal(list_times(teacher, 4, 1, "karras"), fine[::4])
    with pytest.raises(PidistillError, match=r"steps=4096 needs 8192 different noise levels, the teacher has \d+"):
        list_times(teacher, 4096, 4096, "karras")


def test_draws_are_the_student_s_own_times():
    objective = make(steps=8, student_steps=4)
    batch = draw(objective, range(400))
    assert [(batch["i"] == i).sum() > 60 for i in range(4)] == [True] * 4 and batch["i"].max() == 3
    torch.testing.assert_close(objective.times(batch), torch.tensor(
        objective.networks["student"].times, dtype=torch.float64)[batch["i"]], rtol=0, atol=0)


# Options -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"steps": 8}, {"student_steps": 8}, {"times": "cosine"}, {"weighting": "snr_plus_one"},
                                     {"distance": "l1"}, {"flip": True}], ids=str)
def test_options_change_the_loss(options):
    plain, other = make(), make(**options)
    assert not torch.allclose(*(objective.loss(draw(objective, range(6))) for objective in (plain, other)), rtol=1e-3)


@pytest.mark.parametrize("options, words", [
    ({"steps": 12}, r"objective\.steps must be a power of two, 1 to 8192, got 12"), ({"steps": 16384}, "got 16384"),
    ({"steps": 8, "student_steps": 16}, r"student_steps must be a power of two, 1 to 8, got 16"),
    ({"steps": 8, "student_steps": 3}, "got 3"), ({"last_factor": 0}, "last_factor must be .* at least 1, got 0"),
    ({"times": "karas"}, "did you mean 'karras'")])
def test_what_means_nothing_is_one_line(options, words):
    with pytest.raises(PidistillError, match=words):
        make(**options)


def test_a_black_box_teaches():
    teacher = FunctionDenoiser(lambda x, t, y: x / (1 + t[:, None, None, None] ** 2), SHAPE, CLASSES)
    student = make_student(teacher, "random", MLP, **Progressive.plan_student(teacher, {}, None))
    objective = Progressive(Setup(student, teacher, grid_of(teacher, 10), DATA))
    objective.loss(draw(objective, range(4))).mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in student.parameters())


# Runs ----------------------------------------------------------------------------------------------------------------------

TEACHER = "gaussian:1x4x4,modes=2,std=0.3"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8))
    return path


def configure(images, folder="x", **values) -> DistillConfig:
    options = {"teacher": TEACHER, "data": str(images), "out": str(folder), "student": {"init": "random", "net": MLP},
               "train.steps": 4, "train.batch": 4, "log.every": 2, "checkpoint.every": 2, "optimizer.lr": 1e-2, "ema": 0.9,
               "evaluate.num": 4, "preview.every": 100, "objective": {"name": "progressive", "steps": 4}}
    return load_config(DistillConfig, "default", options | values)


def weights(folder) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load_student(folder).parameters()])


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A distillation to 4, 2 and 1 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_distillation(configure(images, folder))
    return folder


def test_stages_halve_the_steps(images):
    stages = list_stages(configure(images, **{"objective.last_factor": 2, "objective.weighting": "snr_plus_one"}))
    assert [*stages] == ["1-progressive", "2-progressive", "3-progressive"]
    assert [stage.objective.pop("student_steps") for stage in stages.values()] == [4, 2, 1]
    assert [stage.train.steps for stage in stages.values()] == [4, 8, 8]
    assert [stage.teacher for stage in stages.values()] == [TEACHER, "previous", "previous"]
    assert [stage.student.init for stage in stages.values()] == ["random", "previous", "previous"]
    assert all(stage.objective == {"name": "progressive", "steps": 4, "weighting": "snr_plus_one"}
               for stage in stages.values())
    single = configure(images, **{"objective.student_steps": 2})
    assert list_stages(single) == {"1-progressive": single}
    with pytest.raises(PidistillError, match="power of two"):
        list_stages(configure(images, **{"objective.steps": 6}))
    with pytest.raises(PidistillError, match=r"data=teacher: .* pidistill pairs --teacher T --out FOLDER"):
        list_stages(configure("teacher"))


def test_every_stage_learns_from_the_one_before(whole, images, tmp_path):
    """The second stage is the run that one would make by hand: the first one's student as teacher and as start."""
    students = [load_student(whole / f"{number}-progressive") for number in (1, 2, 3)]
    assert [len(student.times) - 1 for student in students] == [4, 2, 1]
    first = students[0]
    facts = {key: getattr(first, key) for key in ("t_min", "t_max", "sigma_data", "rho")}
    teacher = Preconditioned(first.net, first.shape, 0, **facts)
    config = configure(images, tmp_path / "by-hand", **{"student": {"init": str(whole / "1-progressive")},
                                                        "objective.student_steps": 2})
    run_distillation(config, teacher)
    assert torch.equal(weights(tmp_path / "by-hand"), weights(whole / "2-progressive"))
    assert torch.equal(weights(whole), weights(whole / "3-progressive"))
    assert not torch.equal(weights(whole), weights(whole / "2-progressive"))


def test_the_first_teacher_is_remembered_and_measures(whole):
    for name in ("", "2-progressive", "3-progressive"):
        assert read_json(whole / name / "student" / "provenance.json")["teacher"] == TEACHER
    results = read_json(whole / "results.json")
    assert {"teacher", "student after 1-progressive", "student after 2-progressive", "student"} <= results.keys()
    table = evaluate_model(str(whole), Protocol(num=4, metrics="trajectory_rmse")).table
    assert any("student" in row[0] for row in table)
    for name in ("1-progressive", "2-progressive", "3-progressive"):  # as `evaluate RUN/2-progressive --checkpoints` does
        config = load_config(DistillConfig, whole / name / "config.yaml")
        assert read_first_teacher(whole / name, config) == TEACHER
        *_, (step, _, student) = load_checkpoints(whole / name, config, load_teacher(TEACHER))
        saved = load_student(whole / name)
        assert step == 4 and student.times == saved.times
        assert torch.equal(student.sample(range(3)), saved.sample(range(3)))


def test_a_student_draws_in_its_steps_and_in_fewer(whole):
    """`sample --steps k` is DDIM between the times that the stage was trained for."""
    student = load_student(whole / "1-progressive")
    z = noise(range(3), student.shape, 0) * 80
    for steps in (4, 2, 1):
        ts = torch.tensor(student.times, dtype=torch.float64)[::4 // steps]
        *_, (_, expected) = Sampler("ddim", steps).integrate(lambda x, t, y: student(x, t), z, ts)
        drawn = student.sample(range(3), steps=steps, clip=False)
        torch.testing.assert_close(drawn, expected.detach(), rtol=1e-5, atol=1e-5)
    with pytest.raises(PidistillError, match="trained to draw in 4 steps; it can draw in 1, 2, 4, not in 3"):
        student.sample(range(3), steps=3)
    with pytest.raises(PidistillError, match="it can draw in 1, not in 2"):
        load_student(whole).sample(range(3), steps=2)


@pytest.mark.parametrize("stage, step", [(1, 3), (1, 4), (2, 2), (3, 4)])
def test_a_distillation_that_was_left_goes_on_bit_for_bit(whole, images, tmp_path, stage, step):
    """In a stage, and at the border of two."""
    for taken in distil_in_steps(configure(images, tmp_path / "left")):
        if (taken.folder.name, taken.number) == (f"{stage}-progressive", step):
            break
    resume_distillation(tmp_path / "left")
    for name in ("1-progressive", "2-progressive", "3-progressive", ""):
        assert torch.equal(weights(tmp_path / "left" / name), weights(whole / name)), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_is_learned_in_one_step(tmp_path, seed):
    """Sliced Wasserstein distances from exact draws; the teacher's 8 steps of DDIM, which it learns, have 0.038."""
    exact, data = draw_exactly(load_teacher(SPEC), 1), tmp_path / "pairs"
    draw_pairs_of_spec(SPEC, data, 20_000)
    student = distil_mixture(tmp_path / "run", seed, {
        "objective": {"name": "progressive", "steps": 4, "times": "cosine"}, "data": str(data), "train.steps": 400,
        "optimizer.lr": 1e-2})
    before, after = measure_start(seed, exact), sliced_wasserstein(student.sample(SEEDS), exact)
    steps = {k: sliced_wasserstein(load_student(tmp_path / "run" / f"{n}-progressive").sample(SEEDS, steps=k), exact)
             for n, k in ((1, 4), (2, 2))}
    print(f"sliced Wasserstein distance {before:.4f} at the start, {after:.4f} after, by stages {steps}")
    assert after < 0.1 and after < before / 4 and after < 1.2 * steps[4]
