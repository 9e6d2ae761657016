"""The one-step student: its forms, their boundary conditions, seeds, saving."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of, noise
from pidistill.core.tensors import like
from pidistill.models.denoiser import FunctionDenoiser, Preconditioned
from pidistill.models.forms import FORMS
from pidistill.models.preconditioning import FORMULAS, Preconditioning, c_in
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import make_student
from tests.helpers import MLP, SHAPE, gaussian64, start, tiny_teacher
from tests.models.test_preconditioning import FACTS, SPECS

SEEDS = list(range(100, 120))
PLAIN = [form for form in FORMS if form not in ("operator", "jump")]  # which need more of a network: test_forms.py
OTHERS = [form for form in PLAIN if not FORMS[form].states]


@pytest.fixture
def student():
    return make_student(tiny_teacher()).eval().requires_grad_(False)


@pytest.mark.parametrize("t_max", [80.0, 14.6, 157.41, 0.1, 49.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boundary_condition_holds_bit_for_bit(t_max, dtype):
    student = make_student(tiny_teacher(t_max=t_max)).to(dtype)
    z = start(SHAPE, 4, t_max, dtype)
    for t in (t_max, torch.full((4,), t_max, dtype=torch.float64)):
        assert torch.equal(student(z, t, torch.tensor([0, 1, 2, 0])), z)


def test_state_is_equation_7(student):
    z, t, y = start(SHAPE, 3, dtype=torch.float32), torch.tensor([0.002, 1.0, 60.0]), torch.tensor([0, 1, 2])
    s = (t / 80)[:, None, None, None]
    F = student.net(z / (0.5**2 + 80**2) ** 0.5, t.log() / 4, y)
    torch.testing.assert_close(student(z, t, y), s * z + (1 - s) * F, rtol=1e-5, atol=1e-5)
    assert F.std() > 0.05


def test_the_teachers_facts_scale_the_input():
    student = make_student(tiny_teacher(t_max=10, sigma_data=0.3))
    z = start(SHAPE, 2, 10, torch.float32)
    scale = c_in(torch.tensor(10.0), 0.3)
    torch.testing.assert_close(student.F(z, torch.ones(2)), student.net(scale * z, torch.zeros(2)))


class Doubled(nn.Module):
    """A network that puts out a variance after the image, as ADM's do."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *args):
        output = self.net(*args)
        return torch.cat([output, output.square()], dim=1)


def teacher_of(kind: str, variance: bool = False) -> Preconditioned:
    """A random network, taken to predict what `kind` says."""
    tiny = tiny_teacher()
    net = Doubled(tiny.model) if variance else tiny.model
    return Preconditioned(net, SHAPE, 3, preconditioning=SPECS[kind], net_spec=tiny.net_spec,
                          **FACTS[kind]).eval().requires_grad_(False)


def states_at(t, seed=3):
    """States of about the size of those at t (B,), and labels."""
    x = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(seed)).to(t)
    return x * like(t + 1, x), torch.arange(len(t)) % 3


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("kind", FORMULAS)
def test_a_denoiser_begins_as_the_teacher(kind, variance):
    teacher = teacher_of(kind, variance)
    student, t = make_student(teacher, form="denoiser"), teacher.grid_times(9).float()
    x, y = states_at(t)
    assert torch.equal(student(x, t, y), teacher(x, t, y)) and student(x, t, y).requires_grad


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("kind", FORMULAS)
def test_consistency_begins_as_the_teachers_network(kind, variance):
    """f = c_skip' x + c_out' (D - c_skip x)/c_out of the teacher's D, at every time."""
    teacher = teacher_of(kind, variance).double()
    student, t = make_student(teacher, form="consistency"), teacher.grid_times(9)
    x, y = states_at(t)
    s, eps, u = teacher.sigma_data, teacher.t_min, like(t, x)
    F = (teacher(x, t, y) - s**2 / (u**2 + s**2) * x) / (u * s / (u**2 + s**2).sqrt())
    expected = s**2 / ((u - eps) ** 2 + s**2) * x + s * (u - eps) / (s**2 + u**2).sqrt() * F
    torch.testing.assert_close(student(x, t, y), expected, rtol=1e-9, atol=1e-9)
    assert (student(x, t, y) - x)[:-1].abs().amax((1, 2, 3)).min() > 1e-3  # but for eps, the last


def test_forms_of_edms_network_are_their_equations():
    """Song et al. (2023), Eq. 5 and Appendix C; Karras et al. (2022), Eq. 7 and Table 1; Eq. (7)'s F alone."""
    s, eps, T, t = 0.3, 0.01, 50.0, torch.tensor([0.01, 0.011, 0.7, 50.0], dtype=torch.float64)
    teacher = tiny_teacher(sigma_data=s, t_min=eps, t_max=T).double()
    x, y = states_at(t)
    u = like(t, x)
    F = teacher.model(x / (u**2 + s**2).sqrt(), t.log() / 4, y)
    expected = {"consistency": s**2 / ((u - eps) ** 2 + s**2) * x + s * (u - eps) / (s**2 + u**2).sqrt() * F,
                "denoiser": s**2 / (u**2 + s**2) * x + u * s / (u**2 + s**2).sqrt() * F,
                "direct": teacher.model(x / (T**2 + s**2) ** 0.5, t.log() / 4, y)}
    for form in OTHERS:
        torch.testing.assert_close(make_student(teacher, form=form)(x, t, y), expected[form], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", FORMULAS)
def test_consistency_at_eps_is_the_state_bit_for_bit(kind, dtype):
    teacher = Preconditioned(tiny_teacher().model, SHAPE, 3, preconditioning=SPECS[kind], net_spec=tiny_teacher().net_spec,
                             **FACTS[kind] | {"sigma_data": 0.3})
    student = make_student(teacher, form="consistency").to(dtype)
    x = start(SHAPE, 4, 1.0, dtype)
    for t in (student.t_min, torch.full((4,), student.t_min, dtype=torch.float64)):
        assert torch.equal(student(x, t, torch.tensor([0, 1, 2, 0])), x)


@pytest.mark.parametrize("kind", ["edm", "epsilon", "v_prediction"])
def test_consistency_does_not_cancel(kind):
    """The coefficients are those of exact arithmetic, also where t - eps and D - c_skip x vanish."""
    eps, s2 = 0.010, Fraction(1, 4)
    precondition = Preconditioning(SPECS[kind], 0.5)
    for t in (eps * (1 + 1e-9), 0.0101, 0.3, 150.0):
        c = precondition.for_consistency(torch.tensor([t], dtype=torch.float64), eps)
        T, gap = Fraction(t), Fraction(t) - Fraction(eps)
        skip, total = s2 / (T**2 + s2), T**2 + s2
        own = {"edm": skip, "epsilon": Fraction(1), "v_prediction": 1 / (1 + T**2)}[kind]
        out = {"edm": 0.5 * t / float(total) ** 0.5, "epsilon": -t, "v_prediction": -t / float(1 + T**2) ** 0.5}[kind]
        assert c.c_skip.item() == pytest.approx(float(s2 / (gap**2 + s2) + gap / T * (own - skip)), rel=1e-14)
        assert c.c_out.item() == pytest.approx(float(gap / T) * out, rel=1e-14)


@pytest.mark.parametrize("form", OTHERS)
def test_other_forms_draw_with_one_call_at_T(form):
    student = make_student(teacher_of("v_prediction"), form=form).eval().requires_grad_(False)
    z, y, calls = noise(SEEDS, SHAPE) * student.t_max, labels_of(SEEDS, 3), []
    student.net.register_forward_hook(lambda *_: calls.append(1))
    images = student.sample(SEEDS, clip=False)
    assert len(calls) == 1 and torch.equal(images, student(z, student.t_max, y)) and images.std() > 0.05
    torch.testing.assert_close(student.sample(SEEDS[7:9], batch_size=1), images[7:9].clip(-1, 1), rtol=0, atol=1e-5)
    with pytest.raises(PidistillError, match=f"a student of the form {form} has no trajectory .* draw with sample"):
        student.trajectory(z, [80.0, 1.0], y)


@pytest.mark.parametrize("kind", ["edm", "v_prediction"])
@pytest.mark.parametrize("form", PLAIN)
def test_a_network_s_half_output_is_taken_up_in_the_state_s_type(form, kind):
    student, t = make_student(teacher_of(kind), form=form), torch.tensor([0.02, 0.5, 8.0])
    x, y = states_at(t)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = student(x, t, y)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, student(x, t, y))
    student.net.register_forward_hook(lambda module, inputs, output: output.bfloat16().float())
    lifted = student(x, t, y)
    student.net.register_forward_hook(lambda module, inputs, output: output.bfloat16())
    assert torch.equal(student(x, t, y), lifted) and lifted.dtype == torch.float32


class Enlarged(nn.Module):
    """Stands for a decoder: images twice as high and wide."""

    def image_shape(self, shape):
        return (shape[0], 2 * shape[1], 2 * shape[2])

    def forward(self, x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize("form", PLAIN)
def test_latents_are_decoded_by_what_is_no_part_of_the_student(form):
    plain = make_student(tiny_teacher(), form=form).eval()
    student = Student(plain.net, plain.net_spec, plain.facts(), decoder=Enlarged(), form=form).eval()
    assert student.image_shape == (1, 16, 16) and isinstance(student.decoder, Enlarged)
    assert not any(isinstance(module, Enlarged) for module in student.modules())
    latents = plain.sample(SEEDS, clip=False)
    assert torch.equal(student.sample(SEEDS, decode=False), latents)
    assert torch.equal(student.sample(SEEDS, clip=False), Enlarged()(latents))


@pytest.mark.parametrize("form", PLAIN)
def test_a_student_s_folder_keeps_its_form(form, tmp_path):
    student = make_student(teacher_of("v_prediction"), form=form).eval()
    folder = student.save(tmp_path / "s")
    config, again = json.loads((folder / "config.json").read_text()), load_student(folder)
    assert config["form"] == again.form == form and torch.equal(again.sample(SEEDS), student.sample(SEEDS))
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "form"}))
    assert load_student(folder).form == "trajectory"  # of before there were forms
    for unknown in ("consistancy", 5, ["direct"]):
        (folder / "config.json").write_text(json.dumps(config | {"form": unknown}))
        words = rf"did you mean 'consistency'\? \(choices: {', '.join(FORMS)}\)" \
            if unknown == "consistancy" else "incomplete"
        with pytest.raises(PidistillError, match=words):
            load_student(folder)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_images_do_not_depend_on_the_batch_size(student, batch_size):
    images = student.sample(SEEDS, batch_size=250)
    assert images.shape == (20, *SHAPE) and images.dtype == torch.float32 and images.abs().max() <= 1
    torch.testing.assert_close(student.sample(SEEDS, batch_size=batch_size), images, rtol=0, atol=1e-5)
    assert (images[0] - images[1]).abs().max() > 0.01


def test_an_image_depends_on_its_seed_and_label_alone(student):
    images, y = student.sample(SEEDS), labels_of(SEEDS, 3)
    torch.testing.assert_close(student.sample([SEEDS[7]]), images[7:8], rtol=0, atol=1e-5)
    torch.testing.assert_close(student.sample(SEEDS, y), images, rtol=0, atol=0)
    one = student.sample(SEEDS, 1)
    same = y == 1
    torch.testing.assert_close(one[same], images[same], rtol=0, atol=1e-5)
    assert (one[~same] - images[~same]).abs().max() > 1e-3


def test_samples_start_from_the_noise_of_their_seeds(student):
    z = noise(SEEDS[:3], SHAPE) * student.t_max
    with torch.no_grad():
        expected = student(z, student.t_min, labels_of(SEEDS[:3], 3))
    torch.testing.assert_close(student.sample(SEEDS[:3], clip=False), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(student.sample(SEEDS[:3]), expected.clip(-1, 1), rtol=0, atol=1e-6)


def test_no_seeds_give_no_images(student):
    assert student.sample([]).shape == (0, *SHAPE)


def test_labels_outside_the_classes_are_refused(student):
    with pytest.raises(PidistillError, match="label 3 is outside the classes 0-2"):
        student.sample([0, 1], [0, 3])


def test_trajectory_starts_at_the_noise_and_ends_at_the_sample(student):
    z, y = noise(SEEDS[:2], SHAPE) * student.t_max, labels_of(SEEDS[:2], 3)
    states = student.trajectory(z, torch.tensor([80.0, 1.0, 0.002], dtype=torch.float64), y)
    assert states.shape == (3, 2, *SHAPE) and torch.equal(states[0], z)
    torch.testing.assert_close(states[2], student.sample(SEEDS[:2], clip=False), rtol=0, atol=1e-6)


def test_saving_and_loading_changes_nothing(student, tmp_path):
    student.save(tmp_path / "run" / "student", {"teacher": "x"})
    for path in (tmp_path / "run" / "student", tmp_path / "run", str(tmp_path / "run")):
        loaded = load_student(path)
        assert loaded.facts() == student.facts() and loaded.net_spec == student.net_spec and not loaded.training
        torch.testing.assert_close(loaded.sample(SEEDS), student.sample(SEEDS), rtol=0, atol=0)
    assert json.loads((tmp_path / "run" / "student" / "provenance.json").read_text()) == {"teacher": "x"}
    assert {path.suffix for path in (tmp_path / "run" / "student").iterdir()} == {".json", ".safetensors"}  # no pickle


def test_students_that_cannot_be_loaded_are_one_line(student, tmp_path):
    with pytest.raises(PidistillError, match="does not exist"):
        load_student(tmp_path / "nowhere")
    folder = student.save(tmp_path / "s")
    config = json.loads((folder / "config.json").read_text())
    for change, words in (({"format": "pidistill-teacher"}, "not a pidistill-student"), ({"net": "mlp"}, "incomplete"),
                          ({"t_max": None}, "incomplete"), ({"num_classes": 5}, "shape")):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(PidistillError, match=words) as caught:
            load_student(folder)
        assert "\n" not in str(caught.value)


def test_a_new_student_is_the_teachers_network():
    teacher = tiny_teacher()
    student = make_student(teacher)
    assert student.facts() == teacher.facts()
    for (name, p), q in zip(student.net.named_parameters(), teacher.model.parameters(), strict=True):
        assert torch.equal(p, q) and p.data_ptr() != q.data_ptr() and p.requires_grad, name


def test_dropout_is_off_in_a_student():
    teacher = tiny_teacher({**tiny_teacher().net_spec, "dropout": 0.3})
    student = make_student(teacher).train()
    z = start(SHAPE, 2, dtype=torch.float32)
    assert torch.equal(student(z, 1.0), student(z, 1.0)) and student.net_spec["dropout"] == 0.0


def test_random_students():
    student = make_student(gaussian64(), "random", MLP)
    assert student.net_spec == MLP and student.shape == (2,)
    torch.manual_seed(5)
    other = make_student(tiny_teacher(), "random")  # the teacher's form with other weights
    assert not torch.equal(next(other.net.parameters()), next(tiny_teacher().model.parameters()))


@pytest.mark.parametrize("init, net, words", [
    ("teacher", None, "set student.init=random and student.net"), ("random", None, "student.net must name a network"),
    ("teacher", MLP, "set student.init=random")])
def test_black_boxes_need_a_network(init, net, words):
    teacher = FunctionDenoiser(lambda x, t, y: x, (2,))
    with pytest.raises(PidistillError, match=words):
        make_student(teacher, init, net)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_and_cpu_draw_the_same_images(student):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = student.sample(SEEDS)
    torch.testing.assert_close(student.cuda().sample(SEEDS), images, rtol=0, atol=1e-4)
    z = start(SHAPE, 4, dtype=torch.float32).cuda()
    assert torch.equal(student(z, student.t_max), z)
    student = make_student(tiny_teacher(), form="consistency").cuda()
    assert torch.equal(student(z, student.t_min), z)


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("preconditioning", ["edm", "flow"])
def test_a_network_of_other_channels_is_one_line(form, preconditioning):
    """One channel would be broadcast over three."""
    facts = {"shape": (3, 4, 4), "num_classes": 0, "t_min": 0.002, "t_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    for change in (lambda u: u[:, :1], lambda u: u[:, :, :1], lambda u: u[:1]):
        net = lambda u, c_noise, labels, change=change: change(u)
        student = Student(nn.Identity(), {"name": "own"}, facts, preconditioning, form=form)
        student.net.forward = net
        with pytest.raises(PidistillError, match="as many channels as it takes, or twice"):
            student(torch.randn(5, 3, 4, 4), 1.0)
        student.net.forward = lambda u, c_noise, labels: torch.cat([u, u], dim=1)
        assert student(torch.randn(5, 3, 4, 4), 1.0).shape == (5, 3, 4, 4)
