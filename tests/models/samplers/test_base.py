"""Samplers by name, their times, and what they draw for a teacher."""

from __future__ import annotations

import inspect

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.registry import find_member, list_members
from pidistill.core.seeds import noise
from pidistill.models.denoiser import FunctionDenoiser, Preconditioned
from pidistill.models.samplers.base import (
    STEPS,
    Sampler,
    is_sampler,
    parse_sampler,
    parse_single_sampler,
    parse_value,
    sample_teacher,
)
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.gaussian import gaussian as parse_gaussian
from tests.helpers import MLP, gaussian64, start, tiny_teacher
from tests.models.samplers.test_samplers import NAMES, STOCHASTIC, VARIANTS, discrete, log_times


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_a_sampler_function(name):
    """As SamplerFunction says: a generator of four arguments, whose options are keyword-only and may be left out."""
    function = find_member("samplers", name)
    assert inspect.isgeneratorfunction(function)
    parameters = list(inspect.signature(function).parameters.values())
    assert [parameter.name for parameter in parameters[:4]] == ["denoise", "z", "ts", "labels"]
    assert all(option.kind is option.KEYWORD_ONLY and option.default is not option.empty for option in parameters[4:])


# names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [
    ("heun", [Sampler("heun", STEPS)]), ("ddim:10,50", [Sampler("ddim", 10), Sampler("ddim", 50)]),
    ("deis3:10", [Sampler("deis", 10, {"order": 3})]), ("dpm_solver2:5", [Sampler("dpm_solver", 5, {"order": 2})]),
    ("dpm_solver_pp:5", [Sampler("dpm_solver_pp", 5)]), ("dpm_solver_fast:10", [Sampler("dpm_solver", 10, {"fast": True})]),
    ("ddim,eta=0.5,spacing=uniform:7", [Sampler("ddim", 7, {"eta": 0.5}, "uniform")]),
    ("heun,churn=40,churn_min=0.05,churn_max=50,churn_noise=1.003:256",
     [Sampler("heun", 256, {"churn": 40, "churn_min": 0.05, "churn_max": 50, "churn_noise": 1.003})]),
    ("ddpm,variance=large,spacing=log:9", [Sampler("ddpm", 9, {"variance": "large"}, "log")]),
    ("deis,variable=t,order=2:4", [Sampler("deis", 4, {"variable": "t", "order": 2})])])
def test_parse_sampler(text, expected, gaussian):
    """str() gives what parses to the same sampler."""
    assert parse_sampler(text) == expected
    z = start((2,))
    for sampler in expected:
        [again] = parse_sampler(str(sampler))
        assert str(again) == str(sampler) and torch.equal(again.times(gaussian), sampler.times(gaussian))
        *_, (_, a), (_, b) = (list(each.integrate(gaussian, z, log_times(9)))[-1] for each in (again, sampler))
        assert torch.equal(a, b)


@pytest.mark.parametrize("text, words", [
    ("huen:5", "unknown sampler 'huen'; did you mean 'heun'"), ("", "unknown sampler ''"), ("no3:5", "sampler 'no3'"),
    ("ddim,et=1:5", "unknown option of samplers/ddim 'et'; did you mean 'eta'"), ("heun2:5", "samplers/heun 'order'"),
    ("ddim,eta=much:5", "eta: .*number.*'much'"), ("deis4:5", "order: .*1, 2 or 3"),
    ("deis,variable=x:5", "variable: .*'x'"), ("ddpm,variance=tiny:5", "variance: .*'small' or 'large'"),
    ("dpm_solver,fast=perhaps:5", "fast: .*'perhaps'"),
    ("dpm_solver2,fast=true:5", "leave order=2 out"), ("ddim,z=1:5", "'z'"),
    ("ddim,eta:5", r"NAME\[,option=value"), ("ddim,:5", r"NAME\[,option=value"),
    ("ddim:0", "steps must be 1 to 10000, got 0"), ("ddim:-3", "got -3"), ("ddim:1000000000", "1 to 10000"),
    ("ddim:10,0", "got 0"), ("ddim:x", "whole numbers such as 10,50, got 'x'"), ("ddim:5,", "'5,'"), ("ddim:1e3", "'1e3'"),
    ("ddim,eta=2:5", "eta: .*less than or equal to 1"), ("ddim,eta=nan:5", "eta: "), ("heun,churn=-1:5", "churn: "),
    ("ddim,draw=1:5", "draw is no option"), ("euler,draw=1:5", "draw is no option"),
    ("ddim,spacing=karas:5", "unknown spacing of times 'karas'; did you mean 'karras'"), ("ddim,spacing=5:5", "'5'")])
def test_what_is_no_sampler_is_one_line(text, words):
    with pytest.raises(PidistillError, match=words) as error:
        parse_sampler(text)
    assert "\n" not in str(error.value)


def test_one_number_of_steps_is_parsed_where_one_is_wanted():
    assert parse_single_sampler("heun", 7) == Sampler("heun", 7)
    assert parse_single_sampler("ddim,eta=0.5:9", 7) == Sampler("ddim", 9, {"eta": 0.5})
    with pytest.raises(PidistillError, match="one number of steps, got 'heun:5,6'"):
        parse_single_sampler("heun:5,6", 7)


def test_a_sampler_is_told_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:1").mkdir()
    texts = ("heun", "deis3:5", "dpm_solver_fast", "ddim,eta=1", "eulr:5", "run:1", "runs/x")
    assert [is_sampler(text) for text in texts] == [True] * 5 + [False] * 2


@pytest.mark.parametrize("text, value", [("True", True), ("false", False), ("3", 3), ("-1e-3", -0.001), ("vp", "vp")])
def test_values_have_the_type_that_they_look_like(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


# times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["karras", "log", "uniform"])
@pytest.mark.parametrize("kind", ["any", "discrete", "part"])
def test_spacings(spacing, kind):
    """From T to eps and then 0, descending, among the levels that the teacher knows."""
    teacher = {"any": gaussian64, "discrete": lambda: discrete(), "part": lambda: discrete(t_min=0.05, t_max=10.0)}[kind]()
    for steps in (1, 2, 3, 7, 30, 100):
        ts = Sampler("euler", steps, spacing=spacing).times(teacher)
        assert ts.dtype == torch.float64 and len(ts) <= steps + 1 and (ts[1:] < ts[:-1]).all()
        assert ts[0] == teacher.t_max and ts[-1] == 0 and (steps == 1 or ts[-2] == teacher.t_min)
        if teacher.times is None:
            assert len(ts) == steps + 1
        else:
            assert torch.isin(ts[:-1], teacher.times).all() and (steps > 7 or len(ts) == steps + 1)


def test_spacings_are_what_they_say():
    teacher, known = gaussian64(), discrete()
    log, uniform = (Sampler("euler", 9, spacing=each).times(teacher)[:-1] for each in ("log", "uniform"))
    assert log.log().diff().std() < 1e-9 and uniform.diff().std() < 1e-9
    steps = torch.searchsorted(known.times, Sampler("euler", 14, spacing="uniform").times(known)[:-1])
    assert steps.tolist() == list(range(39, -1, -3))
    assert torch.equal(Sampler("euler", 9).times(teacher)[:-1], teacher.grid_times(9))
    assert len(Sampler("euler", 100, spacing="uniform").times(known)) == 41


def test_fewer_levels_are_fewer_evaluations():
    """Several steps that snap to one noise level are one."""
    teacher = discrete()
    assert len(Sampler("euler", 60).times(teacher)) == Sampler("euler", 60).evaluations(teacher) + 1 <= 41


# images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", VARIANTS)
def test_an_image_is_its_seed_s_alone(text):
    """Of stochastic samplers too: no other image of the batch, and no state of a generator, has a part in it."""
    teacher, seeds = load_teacher("gaussian:1x4x4,modes=3,std=0.3"), [3, 1, 4, 15, 9, 2, 6, 5]
    [sampler] = parse_sampler(f"{text}:5")
    draw = lambda seeds, **options: sample_teacher(teacher, seeds, sampler=sampler, **options)
    images = draw(seeds)
    assert images.shape == (8, 1, 4, 4) and images.isfinite().all() and images.dtype == torch.float32
    for size in (1, 3, 8):
        torch.manual_seed(size)
        torch.testing.assert_close(draw(seeds, batch_size=size), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(draw(seeds[::-1]), images.flip(0), rtol=0, atol=1e-5)
    assert torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(1).min() > 1e-3


@pytest.mark.parametrize("text, plain", [
    ("ddim,eta=0.7", "ddim"), ("ddim,eta=1", "ddim,eta=0.7"), ("ddpm,variance=large", "ddpm"), ("heun,churn=3", "heun"),
    *((f"heun,churn=3,churn_{option}", "heun,churn=3") for option in ("noise=1.1", "min=1", "max=1"))])
def test_options_of_the_noise_change_the_images(text, plain):
    teacher = load_teacher("gaussian:1x4x4,std=0.3")
    a, b = (sample_teacher(teacher, range(4), sampler=parse_sampler(f"{each}:5")[0]) for each in (text, plain))
    assert (a - b).abs().max() > 1e-3


def test_draws_of_steps_are_independent(monkeypatch):
    """Of one another, and of z."""
    draws, sampler = [], Sampler("ddpm", 5)

    def keep(self, denoise, z, ts, labels, draw):
        draws.extend([z / 80, *(draw(k) for k in range(4))])
        yield 0.0, z

    monkeypatch.setattr(Sampler, "integrate", keep)
    sample_teacher(FunctionDenoiser(lambda x, t, labels: x, (1, 32, 32)), range(2), sampler=sampler)
    flat = torch.stack(draws).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(5)).abs().max() < 0.1 and (flat.std(dim=1) - 1).abs().max() < 0.1


def test_teacher_solution_is_that_of_the_ode():
    """Heun on a Gaussian against the closed form, from the noise of the seeds."""
    teacher = parse_gaussian("1x4x4,mean=0.2,std=0.5")
    z = noise(range(9), teacher.shape) * teacher.t_max
    images = sample_teacher(teacher, range(9), steps=72, batch_size=4)
    torch.testing.assert_close(images, teacher.exact(z, 0.0), rtol=0, atol=0.01)
    ts = Sampler(steps=5).times(teacher)
    assert len(ts) == 6 and ts[0] == teacher.t_max and ts[4] == teacher.t_min and ts[5] == 0


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """A tiny DiT with a decoder: without guidance, and with."""
    from tests.models.teachers.test_diffusers import LATENT, ddim, dit, save, vae

    spec = save(tmp_path_factory.mktemp("pipeline") / "p", ddim(**LATENT), dit(), vae(), "DiTPipeline")
    return load_teacher(spec), load_teacher(spec + ",guidance=2")


@pytest.mark.parametrize("text", [*NAMES, *STOCHASTIC])
def test_labels_guidance_and_decoder(text, latent):
    plain, guided = latent
    [sampler], seeds, y = parse_sampler(f"{text}:4"), [5, 6], torch.tensor([0, 3])
    draw = lambda teacher, labels, **options: sample_teacher(teacher, seeds, labels, sampler=sampler, **options)
    latents = draw(guided, y, decode=False)
    assert latents.shape == (2, 4, 8, 8) and latents.isfinite().all()
    torch.testing.assert_close(draw(guided, y), guided.decoder(latents), rtol=1e-4, atol=1e-4)
    other = draw(guided, torch.tensor([0, 1]), decode=False)
    assert torch.allclose(other[0], latents[0], rtol=1e-4, atol=1e-4) and not torch.allclose(other[1], latents[1], rtol=0.01)
    torch.testing.assert_close(draw(guided, y, batch_size=1, decode=False), latents, rtol=1e-3, atol=1e-3)
    null = torch.full_like(y, guided.null_label)
    mixed = FunctionDenoiser(lambda x, t, y: 2 * plain.denoise(x, t, y) - plain.denoise(x, t, null), plain.shape, 5,
                             t_min=plain.t_min, t_max=plain.t_max)
    mixed.times = plain.times
    torch.testing.assert_close(draw(mixed, y), latents, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(draw(plain, y, decode=False), latents, rtol=0.01)


# steps that fall on one level, and shapes -------------------------------------------------------------------------------


def stepped(levels: int) -> Preconditioned:
    """A teacher that knows so many noise levels."""
    return tiny_teacher(MLP, preconditioning={"name": "sample", "sigmas": torch.logspace(-2, 1.5, levels).tolist()},
                        t_min=0.01, t_max=31.0)


@pytest.mark.parametrize("text, steps", [
    ("euler:250", 100), ("ddim,spacing=uniform:250", 100), ("ddim,spacing=log:1000", 100), ("dpm_solver_pp:101", 86),
    ("euler:5", 5), ("deis3,spacing=uniform:100", 100)])
def test_fewer_steps_than_were_asked_for_are_said(text, steps, capsys):
    """A model with 100 levels drew fewer than 250 steps and said nothing. Each sampler says it once."""
    [sampler], teacher = parse_sampler(text), stepped(100)
    for _ in range(2):
        sample_teacher(teacher, range(2), torch.tensor([0, 1]), sampler=sampler)
    assert len(sampler.times(teacher)) == steps + 1
    said = [line for line in capsys.readouterr().err.splitlines() if "noise levels" in line]
    assert said == [f"{sampler}: {steps} steps, as many as differ among the teacher's 100 noise levels"
                    ] * (steps < sampler.steps)


def test_a_teacher_of_any_level_takes_all_steps(capsys):
    assert len(Sampler("euler", 250).times(tiny_teacher())) == 251
    sample_teacher(tiny_teacher(), range(1), torch.tensor([0]), steps=20)
    assert "noise levels" not in capsys.readouterr().err


@pytest.mark.parametrize("name", list_members("samplers"))
@pytest.mark.parametrize("change", [lambda x: x[:, :1], lambda x: x[:1], lambda x: x[:, :1, :1, :1], lambda x: x[0]],
                         ids=["a channel", "a sample", "a number a sample", "no batch"])
def test_a_denoiser_of_another_shape_is_refused(name, change):
    sampler = Sampler(name, 3)
    with pytest.raises(PidistillError, match=r"the denoiser must give the shape of x, \(4, 3, 2, 2\)"):
        list(sampler.integrate(lambda x, t, labels: change(x), torch.randn(4, 3, 2, 2), torch.tensor([9.0, 1.0, 0.0]), None,
                               lambda k: torch.randn(4, 3, 2, 2)))


@pytest.mark.parametrize("text, evaluations, states, stochastic", [
    ("heun:4", 7, 4, False), ("euler:4", 4, 4, False), ("ddpm:4", 4, 4, True), ("ddim:4", 4, 4, False),
    ("ddim,eta=0.5:4", 4, 4, True), ("heun,churn=9:4", 7, 4, True), ("heun,churn=9,churn_max=0:4", 7, 4, False)])
def test_a_trace_tells_evaluations_states_and_noise(text, evaluations, states, stochastic):
    [sampler] = parse_sampler(text)
    trace = sampler.trace(tiny_teacher())
    assert (trace.evaluations, len(trace.times), trace.stochastic) == (evaluations, states, stochastic)
    assert trace.times == tuple(sampler.times(tiny_teacher())[1:].tolist())
