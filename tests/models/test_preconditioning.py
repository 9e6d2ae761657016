"""What a network predicts, and the denoiser and the student made of it, on Gaussian data where all is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import like
from pidistill.models.denoiser import Preconditioned
from pidistill.models.grid import Grid
from pidistill.models.preconditioning import FORMULAS, Preconditioning, cut_variance, iddpm_times
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import make_student
from pidistill.objectives.schemes.autodiff import Autodiff
from tests.helpers import SHAPE, start, tiny_teacher

MU, S = 0.3, 0.5  # mean and standard deviation of the data
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # DDPM's
ABAR = (1 - BETAS).cumprod(0)
SIGMAS = ((1 - ABAR) / ABAR).sqrt()
SPECS = {name: {"name": name, "sigmas": SIGMAS.tolist()} for name in ("epsilon", "v_prediction", "sample")} | {
    name: name for name in ("edm", "edm_v", "vp", "ve", "score", "iddpm", "flow")}
RANGE = {"epsilon": (SIGMAS[0], SIGMAS[-1]), "v_prediction": (SIGMAS[0], SIGMAS[-1]), "sample": (SIGMAS[0], SIGMAS[-1]),
         "flow": (0.002, 80), "edm": (0.002, 80), "edm_v": (0.002, 80), "score": (0.02, 100),
         "vp": (0.002, 150), "ve": (0.02, 100), "iddpm": (0.009, 1000)}
FACTS = {name: {"t_min": float(low), "t_max": float(high), "sigma_data": S} for name, (low, high) in RANGE.items()}


def clean(x, t):
    """E[x_0 | x] for data N(MU, S^2)."""
    return MU + (x - MU) * S**2 / (S**2 + t**2)


class Ideal(nn.Module):
    """The network that was trained perfectly: it undoes its own input scaling and clock and predicts what it should."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.scale, self.calls = kind, nn.Parameter(torch.ones((), dtype=torch.float64)), 0

    def time(self, c_noise):
        if self.kind in ("edm", "edm_v"):
            return (4 * c_noise).exp()
        if self.kind == "score":
            return 2 * c_noise
        if self.kind == "ve":
            return 2 * c_noise.exp()
        if self.kind == "vp":  # sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)
            clock = c_noise / 999
            return (0.5 * 19.9 * clock**2 + 0.1 * clock).expm1().sqrt()
        if self.kind == "iddpm":
            return iddpm_times()[999 - c_noise.round().long()]
        if self.kind == "flow":
            return (c_noise / 1000) / (1 - c_noise / 1000)
        k = c_noise.floor().long().clamp(0, 998)
        return (SIGMAS[k].log() + (c_noise - k) * (SIGMAS[k + 1] / SIGMAS[k]).log()).exp()

    def forward(self, u, c_noise, labels=None):
        self.calls += 1
        t = like(self.time(c_noise.double()), u)
        edm = lambda: u * (t**2 + S**2).sqrt()
        x = {"edm": edm, "edm_v": edm, "ve": lambda: u, "score": lambda: u,
             "flow": lambda: u * (1 + t)}.get(self.kind, lambda: u * (1 + t**2).sqrt())()
        x_0 = clean(x, t)
        eps, alpha = (x - x_0) / t, 1 / (1 + t**2).sqrt()
        raw = lambda: (x_0 - x * S**2 / (S**2 + t**2)) * (t**2 + S**2).sqrt() / (t * S)
        out = {"edm": raw, "edm_v": lambda: -raw(), "ve": lambda: -eps, "score": lambda: -2 * eps / t,
               "v_prediction": lambda: alpha * eps - t * alpha * x_0, "sample": lambda: x_0,
               "flow": lambda: eps - x_0}.get(self.kind, lambda: eps)()
        return out * self.scale


def teacher_of(kind, net=None):
    return Preconditioned(net or Ideal(kind), SHAPE, preconditioning=SPECS[kind], net_spec={"name": "ideal"},
                          **FACTS[kind]).double()


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_perfect_network_is_the_perfect_denoiser(kind):
    teacher = teacher_of(kind)
    t = teacher.grid_times(12)
    x = start(SHAPE, len(t)) / 80 * like((S**2 + t**2).sqrt(), torch.zeros(12, *SHAPE, dtype=torch.float64))
    torch.testing.assert_close(teacher(x, t), clean(x, like(t, x)), rtol=1e-6, atol=1e-6 if kind == "vp" else 1e-9)
    assert len(t) == 12 and teacher.model.calls == 1


@pytest.mark.parametrize("kind", sorted(FORMULAS.keys() - {"edm"}))
def test_at_T_the_student_starts_at_the_clean_image_that_the_network_sees(kind):
    """F_theta(z, T) = D(z, T); EDM's networks give it over sigma_data, as in the paper."""
    teacher = teacher_of(kind)
    student = make_student(teacher)
    T = teacher.grid_times(5)[0]
    z = start(SHAPE, 4, float(T))
    F, D = student.F(z, T.expand(4)), teacher(z, T.expand(4))
    torch.testing.assert_close(F, D, rtol=0, atol=5 * S**2 / float(T))  # c_skip z is that large
    assert (F - MU).abs().max() < 0.02


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_start_is_of_the_size_of_data_at_every_time(kind):
    """Of an ideal network; with the x_0-prediction's coefficients of T at all times noise predictions would be T large."""
    teacher = teacher_of(kind)
    student = make_student(teacher)
    t = teacher.grid_times(40)
    z = start(SHAPE, len(t), teacher.t_max)
    F = student.F(z, t)
    size = F.flatten(1).square().mean(1).sqrt()
    assert bool(F.isfinite().all()) and size.max() < 3 * (1 if kind == "edm" else S)


@pytest.mark.parametrize("kind", FORMULAS)
def test_derivative_in_time_is_the_difference_quotient(kind):
    """What the autodiff scheme needs of every clock."""
    if kind in ("iddpm",):
        pytest.skip("its clock is a step function")
    student = make_student(teacher_of(kind))
    z, t = start(SHAPE, 3, student.t_max), torch.tensor([0.3, 2.1, 20.0], dtype=torch.float64)
    F = lambda t: student.F(z, t)
    _, slope = torch.func.jvp(F, (t,), (torch.ones_like(t),))
    h = (1e-3 if kind == "vp" else 1e-6) * t  # vp's clock is float32
    expected = (F(t + h) - F(t - h)) / like(2 * h, z)
    torch.testing.assert_close(slope, expected, rtol=5e-3 if kind == "vp" else 1e-4, atol=1e-6 * student.t_max)


def test_an_admissible_time_is_exactly_its_step_after_float32():
    precondition = Preconditioning(SPECS["epsilon"])
    assert torch.equal(precondition(SIGMAS.float()).c_noise, torch.arange(1000.0, dtype=torch.float64))
    between = (SIGMAS[10] * SIGMAS[11]).sqrt()
    assert precondition(between[None]).c_noise.item() == pytest.approx(10.5)
    slope, = torch.autograd.grad(precondition(t := SIGMAS[10:11].clone().requires_grad_()).c_noise.sum(), t)
    assert slope > 0


@pytest.mark.parametrize("kind", ["epsilon", "iddpm"])
def test_grids_snap_to_the_times_that_the_teacher_knows(kind):
    teacher = teacher_of(kind)
    for points in (2, 18, 250, 5000):
        t = Grid(teacher.grid_times(points)).t
        assert torch.isin(t, teacher.times).all() and len(t) <= min(points, len(teacher.times))
    assert teacher.grid_times(18)[0] == teacher.t_max and teacher.grid_times(18)[-1] == teacher.t_min
    assert len(teacher.grid_times(18)) in (17, 18) and len(teacher_of("edm").grid_times(5000)) == 5000


def test_published_tables():
    """Linear DDPM schedule: 0.0100 to 157; iDDPM: the recursion of Karras et al. (2022), Table 1."""
    assert SIGMAS[0].item() == pytest.approx(0.0100, abs=1e-4) and SIGMAS[-1].item() == pytest.approx(157.4, abs=0.1)
    u = iddpm_times()
    assert u[-1] == 0 and (u[:-1] > u[1:]).all() and len(u) == 1001
    for j in (3, 500, 999):  # the recursion backwards: abar is u's own 1/(1 + u^2) while C_1 does not bite
        assert ((1 + u[j]**2) / (1 + u[j - 1] ** 2)).item() >= 0.001 - 1e-12


def test_students_keep_their_preconditioning(tmp_path):
    spec = SPECS["v_prediction"]
    teacher = Preconditioned(tiny_teacher().model, SHAPE, 3, preconditioning=spec, net_spec=tiny_teacher().net_spec,
                             **FACTS["v_prediction"])
    student = make_student(teacher).eval().requires_grad_(False)
    student.save(tmp_path / "s")
    again = load_student(tmp_path / "s")
    assert again.preconditioning.spec == spec and torch.equal(again.sample(range(4)), student.sample(range(4)))
    edm = Student(student.net, student.net_spec, student.facts())
    assert not torch.allclose(edm.sample(range(4)), student.sample(range(4)), atol=1e-2)


def test_a_random_start_of_a_noise_predictor_predicts_v():
    teacher = Preconditioned(tiny_teacher().model, SHAPE, 3, preconditioning=SPECS["epsilon"],
                             net_spec=tiny_teacher().net_spec, **FACTS["epsilon"])
    assert make_student(teacher).preconditioning.name == "epsilon"
    student = make_student(teacher, "random")
    assert student.preconditioning.spec == SPECS["v_prediction"]
    assert make_student(teacher, "random", {"name": "mlp"}).preconditioning.name == "edm"
    z = start(SHAPE, 2, student.t_max, torch.float32)
    assert student.F(z, torch.full((2,), student.t_max)).std() < 2


def test_autodiff_reaches_every_clock():
    student = make_student(Preconditioned(copy.deepcopy(tiny_teacher().model), SHAPE, 3, preconditioning=SPECS["epsilon"],
                                          net_spec=tiny_teacher().net_spec, **FACTS["epsilon"]))
    z, t = start(SHAPE, 2, student.t_max, torch.float32), SIGMAS.flip(0)
    x = Autodiff()(lambda *times: tuple(student.F(z, u) for u in times), z, torch.tensor([3, 900]), t, student.t_max)
    assert bool(x.prediction.isfinite().all())


def test_guidance_is_the_weighted_difference():
    """u + w (c - u) of the network's output; without labels, or with w = 1, nothing."""
    net, facts = tiny_teacher(classes=4).model, FACTS["epsilon"]
    plain = Preconditioned(net, SHAPE, 3, preconditioning=SPECS["epsilon"], **facts)
    guided = Preconditioned(net, SHAPE, 3, preconditioning=SPECS["epsilon"], guidance=2.5, null_label=3, **facts)
    x, t, y = start(SHAPE, 5, 2.0, torch.float32), torch.full((5,), 1.3), torch.tensor([0, 1, 2, 0, 1])
    c, u = plain(x, t, y), plain(x, t, torch.full_like(y, 3))
    torch.testing.assert_close(guided(x, t, y), u + 2.5 * (c - u), rtol=1e-4, atol=1e-5)
    assert (c - u).abs().max() > 1e-3
    with pytest.raises(PidistillError, match="guidance"):
        Preconditioned(net, SHAPE, 3, guidance=2.0)


@pytest.mark.parametrize("spec, words", [
    ("epsilom", "did you mean 'epsilon'"), ("epsilon", "needs `sigmas`"), ({"name": "vp", "beta": 1}, "beta"),
    ({"name": "sample", "sigmas": [1.0, 0.5]}, "ascending"), ({"name": "sample", "sigmas": [1.0]}, "ascending"),
    ({"name": "sample", "sigmas": [0.0, 1.0]}, "positive"), ({"name": "sample", "sigmas": [0.1, float("inf")]}, "finite")])
def test_bad_descriptions_are_one_line(spec, words):
    with pytest.raises(PidistillError, match=words):
        Preconditioning(spec)


# shapes that would be broadcast by accident -----------------------------------------------------------------------------

X = torch.zeros(4, 3, 8, 8)
WRONG = [(4, 1, 8, 8), (4, 2, 8, 8), (4, 4, 8, 8), (4, 5, 8, 8), (4, 9, 8, 8), (1, 3, 8, 8), (3, 8, 8), (4, 3, 1, 1),
         (4, 3, 8, 1), (4, 3), (4, 3, 8, 8, 1), ()]


@pytest.mark.parametrize("shape", WRONG, ids=str)
def test_what_a_network_gives_must_be_of_its_input_s_shape(shape):
    with pytest.raises(PidistillError, match=r"as many channels as it takes, or twice .* for x of \(4, 3, 8, 8\) it gave"):
        cut_variance(torch.zeros(shape), X)


def test_a_variance_behind_the_image_is_cut_off():
    output = torch.randn(4, 6, 8, 8)
    assert torch.equal(cut_variance(output, X), output[:, :3]) and torch.equal(cut_variance(output[:, :3], X), output[:, :3])
    assert cut_variance(torch.zeros(5, 4), torch.zeros(5, 2)).shape == (5, 2)
    with pytest.raises(PidistillError, match="it gave tuple"):
        cut_variance((output,), X)


# constants of their own -------------------------------------------------------------------------------------------------


def test_a_flow_s_clock_may_be_whole_steps():
    """As diffusers' multistep solvers tell it; a level that went through float32 is its step itself."""
    s = torch.tensor([0.0995, 0.1, 0.1009, 0.5, 0.9, 0.99999], dtype=torch.float64)
    plain, whole = Preconditioning("flow"), Preconditioning({"name": "flow", "whole": True})
    t = (s.float() / (1 - s.float())).double()
    assert whole(t).c_noise.tolist() == [99, 100, 100, 500, 900, 999]
    assert all(torch.equal(a, b) for a, b in zip(plain(t)[:3], whole(t)[:3]))
    assert whole.spec == {"name": "flow", "whole": True}
    with pytest.raises(PidistillError, match="whole must be true or false, got 1"):
        Preconditioning({"name": "flow", "whole": 1})


def test_the_student_of_whole_steps_has_a_smooth_clock():
    spec = {"name": "flow", "scale": 1000.0, "whole": True}
    teacher = Preconditioned(tiny_teacher().model, SHAPE, 3, preconditioning=spec, net_spec=tiny_teacher().net_spec,
                             **FACTS["flow"])
    for init in ("teacher", "random"):
        assert make_student(teacher, init).preconditioning.spec == {"name": "flow", "scale": 1000.0}


@pytest.mark.parametrize("name", ["edm", "edm_v"])
def test_a_formula_of_EDM_may_have_its_own_data_scale(name):
    own, t = Preconditioning({"name": name, "sigma_data": 0.3}, 0.7), torch.tensor([0.1, 2.0])
    assert own.spec == {"name": name, "sigma_data": 0.3} and own.sigma_data == 0.7
    assert all(torch.equal(a, b) for a, b in zip(own(t), Preconditioning(name, 0.3)(t)))
    with pytest.raises(PidistillError, match="sigma_data must be positive, got 0"):
        Preconditioning({"name": name, "sigma_data": 0})
