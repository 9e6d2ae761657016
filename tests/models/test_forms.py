"""Forms that need more of a student than a noise and a time: several states at once, a second time, several calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of, noise
from pidistill.core.tensors import like
from pidistill.models.denoiser import Preconditioned
from pidistill.models.forms import FORMS
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import make_student
from pidistill.models.student_teacher import make_teacher
from tests.helpers import SHAPE, tiny_teacher

SEEDS = list(range(100, 108))
FACTS = {"shape": (2,), "num_classes": 0, "t_min": 0.01, "t_max": 50.0, "sigma_data": 0.5, "rho": 7.0}


class TwoTimes(nn.Module):
    """Gives u plus what it is told of both times."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, 0.7], dtype=torch.float64))

    def forward(self, u, c_noise, labels=None):
        assert c_noise.shape == (len(u), 2)
        return u + (c_noise * self.weight.to(u.dtype)).sum(dim=1, keepdim=True)


class Noisy(nn.Module):
    """Gives a function of its input and its time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, u, c_noise, labels=None):
        return (self.weight.to(u.dtype) * u + c_noise[:, None]).sin()


def student_of(net, form, **options) -> Student:
    return Student(net, {"name": "own"}, FACTS, form=form, **options).eval().requires_grad_(False)


def test_a_jump_is_its_equation():
    """Kim et al. (2024), Eq. 9: G(x, t, s) = (s/t) x + (1 - s/t) g(x, t, s), g with EDM's preconditioning."""
    student, sd = student_of(TwoTimes(), "jump"), 0.5
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor([50.0, 3.0, 0.4], dtype=torch.float64)
    s = torch.tensor([0.01, 2.0, 0.4], dtype=torch.float64)
    u, v = like(t, x), like(s, x)
    net = x / (u**2 + sd**2).sqrt() + 0.3 * u.log() / 4 + 0.7 * v.log() / 4
    g = sd**2 / (u**2 + sd**2) * x + u * sd / (u**2 + sd**2).sqrt() * net
    torch.testing.assert_close(student(x, t, None, s), v / u * x + (1 - v / u) * g, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(student(x, t), student.jump(x, t, torch.full_like(t, 0.01)), rtol=0, atol=0)
    assert torch.equal(student.jump(x, s, s)[2], x[2])  # from t to t, for all weights
    with pytest.raises(PidistillError, match="the form denoiser cannot be asked for the state at a second time s"):
        student_of(Noisy(), "denoiser")(x, t, None, s)


def test_a_signal_is_its_equation():
    student, teacher = make_student(tiny_teacher(), form="signal").double(), tiny_teacher()
    z, y = (noise(SEEDS, SHAPE) * teacher.t_max).double(), labels_of(SEEDS, 3)
    F = student.F(z, torch.full((8,), 7.0, dtype=torch.float64), y)
    torch.testing.assert_close(student(z, 7.0, y), 7.0 / teacher.t_max * z + F, rtol=0, atol=0)
    assert torch.equal(student.trajectory(z, [7.0], y)[0], student(z, 7.0, y)) and student.drawing_time == teacher.t_min


def test_an_operator_gives_all_its_states_in_one_call():
    student, calls = student_of(Noisy(), "operator", times=(50.0, 2.0, 0.01)), []
    student.net.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    z = torch.randn(4, 2, dtype=torch.float64) * 50
    states = student.list_states(z)
    assert states.shape == (4, 3, 2) and calls == [12] and torch.equal(states[:, 0], z)
    trajectory = student_of(Noisy(), "trajectory")
    for m, t in enumerate(student.times):
        torch.testing.assert_close(states[:, m], trajectory(z, t), rtol=1e-12, atol=1e-12)
        assert torch.equal(student(z, t), states[:, m])
    assert torch.equal(student.generate(z), states[:, -1])
    each = torch.tensor([50.0, 0.01, 2.0, 2.0], dtype=torch.float64)
    assert torch.equal(student(z, each), states[torch.arange(4), [0, 2, 1, 1]])
    with pytest.raises(PidistillError, match=r"knows the times 50, 2, 0\.01, not 3"):
        student(z, 3.0)
    with pytest.raises(PidistillError, match="needs the times of its states"):
        student_of(Noisy(), "operator").list_states(z)


@pytest.mark.parametrize("times", [(1.0,), (1.0, 2.0), (1.0, -1.0)])
def test_times_that_do_not_descend_are_one_line(times):
    with pytest.raises(PidistillError, match="a student's times must descend, to 0 at most"):
        student_of(Noisy(), "operator", times=times)


def test_a_denoiser_may_draw_from_less_noise(tmp_path):
    student = make_student(tiny_teacher(), form="denoiser", drawing_time=2.5).eval()
    z, y = noise(SEEDS, SHAPE), labels_of(SEEDS, 3)
    torch.testing.assert_close(student.sample(SEEDS, clip=False), student(2.5 * z, 2.5, y), rtol=0, atol=1e-5)
    again = load_student(student.save(tmp_path / "s"))
    assert again.drawing_time == 2.5 and torch.equal(again.sample(SEEDS), student.sample(SEEDS))
    for form, time in (("consistency", 2.5), ("trajectory", 1.0), ("denoiser", 200.0), ("denoiser", 0.0)):
        with pytest.raises(PidistillError, match=rf"a student of the form {form} draws at"):
            make_student(tiny_teacher(), form=form, drawing_time=time)


def test_several_steps_of_a_consistency_student_are_algorithm_1():
    student, net = student_of(Noisy(), "consistency"), student_of(Noisy(), "consistency")
    z, draws = (noise(SEEDS, (2,)) * 50).double(), [noise(SEEDS, (2,), k).double() for k in (1, 2)]
    times = student.list_times(3)
    assert len(times) == 3 and times[0] == 50 and times[-1] > 0.01
    x = net(z, times[0])
    for t, n in zip(times[1:], draws, strict=True):
        x = net(x + (t**2 - 0.01**2) ** 0.5 * n, t)
    student.double()
    torch.testing.assert_close(student.sample(SEEDS, clip=False, steps=3), x.float(), rtol=1e-4, atol=1e-4)
    assert not torch.equal(student.sample(SEEDS, steps=3, gamma=0.5), student.sample(SEEDS, steps=3))


def test_several_steps_of_a_denoiser_are_ddim_between_its_times():
    student = student_of(Noisy(), "denoiser", times=(50.0, 8.0, 1.0, 0.2, 0.0))
    x = noise(SEEDS, (2,)) * 50
    for t, u in ((50.0, 1.0), (1.0, 0.0)):
        D = student(x, t)
        x = D + u / t * (x - D)
    torch.testing.assert_close(student.sample(SEEDS, clip=False, steps=2), x, rtol=1e-5, atol=1e-5)
    assert student.list_times(4) == [50.0, 8.0, 1.0, 0.2] and student.list_times(1) == [50.0]
    with pytest.raises(PidistillError, match="trained to draw in 4 steps; it can draw in 1, 2, 4, not in 3"):
        student.sample(SEEDS, steps=3)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_several_steps_of_a_jump_are_gamma_sampling(gamma):
    student = student_of(TwoTimes(), "jump")
    t, u = student.list_times(2)
    x, eps = noise(SEEDS, (2,)) * 50, 0.01
    x = student(x, t, None, max((1 - gamma**2) ** 0.5 * u, eps))
    x = x + (u**2 - max((1 - gamma**2) * u**2, eps**2)) ** 0.5 * (gamma > 0) * noise(SEEDS, (2,), 1)
    expected = student(x, u, None, eps)
    torch.testing.assert_close(student.sample(SEEDS, clip=False, steps=2, gamma=gamma), expected, rtol=1e-5, atol=1e-5)
    default = student.sample(SEEDS, clip=False, steps=2)
    assert torch.equal(default, student.sample(SEEDS, clip=False, steps=2, gamma=0.0))


def test_an_image_of_several_steps_depends_on_its_seed_alone():
    student = student_of(Noisy(), "consistency")
    images = student.sample(SEEDS, steps=3)
    torch.testing.assert_close(student.sample(SEEDS, steps=3, batch_size=3), images, rtol=0, atol=1e-6)


def test_steps_that_a_form_has_not_are_one_line():
    for form in ("trajectory", "signal", "direct"):
        with pytest.raises(PidistillError, match=f"form {form} draws in one step; more have consistency, denoiser, jump"):
            student_of(Noisy(), form).sample(SEEDS, steps=2)
    with pytest.raises(PidistillError, match="gamma is of several steps of the forms consistency and jump"):
        student_of(Noisy(), "consistency").sample(SEEDS, gamma=0.5)
    with pytest.raises(PidistillError, match="gamma must be 0 to 1, got 2"):
        student_of(Noisy(), "consistency").sample(SEEDS, steps=2, gamma=2)
    with pytest.raises(PidistillError, match="steps must be at least 1"):
        student_of(Noisy(), "consistency").sample(SEEDS, steps=0)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_denoiser_can_teach(kind):
    given = tiny_teacher()
    teacher = Preconditioned(given.model, SHAPE, 3, preconditioning=kind, net_spec=given.net_spec, t_max=20.0)
    student = make_student(teacher, form="denoiser")
    taught, x, y = make_teacher(student), torch.randn(3, *SHAPE), torch.tensor([0, 1, 2])
    assert taught.facts() == teacher.facts() and torch.equal(taught(x, 2.0, y), teacher(x, 2.0, y))
    for form in FORMS.keys() - {"denoiser"}:
        with pytest.raises(PidistillError, match=f"a student of the form {form} cannot teach; one of the form denoiser can"):
            make_teacher(student_of(Noisy(), form, times=(50.0, 0.01) if form == "operator" else None))
