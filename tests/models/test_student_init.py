"""Students of black boxes, of pickles, and those that begin as another."""

from __future__ import annotations

import copy

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_folder
from pidistill.files.reading import read_json, sha256
from pidistill.jobs.convert import convert
from pidistill.jobs.distill import distill
from pidistill.models.denoiser import FunctionDenoiser, Preconditioned
from pidistill.models.forms import FORMS
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import collect_tensors, describe_teacher, load_teacher
from tests.helpers import SHAPE, loss_of, tiny_teacher
from tests.jobs.test_convert import pickle_of

RUN = {"train.steps": 40, "train.batch": 16, "optimizer.lr": 1e-2, "optimizer.clip": 1.0, "ema": 0.5,
       "grid.points": 40,
       "evaluate.num": 4, "preview.every": 100}


@pytest.mark.parametrize("class_name, facts", [
    ("EDMPrecond", {"sigma_data": 0.5}), ("VPPrecond", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_max": 2.0})])
def test_a_pickle_is_distilled(tmp_path, class_name, facts):
    path = pickle_of(tmp_path / "net.pkl", class_name, **facts)
    student, teacher = distill(f"edm:{path}", out=tmp_path / "run", overrides=RUN), load_teacher(f"edm:{path}")
    assert loss_of(student, teacher) < 0.8 * loss_of(make_student(teacher), teacher)
    provenance = read_json(tmp_path / "run" / "student" / "provenance.json")
    assert provenance["teacher_source"]["sha256"] == sha256(path)


def test_a_python_factory_is_distilled(tmp_path, monkeypatch):
    (tmp_path / "mine_teacher.py").write_text(
        "import torch\n\nclass Mine(torch.nn.Module):\n    shape, num_classes = (1, 4, 4), 2\n"
        "    t_min, t_max, sigma_data = 0.01, 20.0, 0.5\n\n    def forward(self, x, t, labels=None):\n"
        "        m = 0.4 * (labels * 2 - 1)[:, None, None, None]\n        u = (t ** 2)[:, None, None, None]\n"
        "        return m + (x - m) * 0.09 / (0.09 + u)\n")
    monkeypatch.chdir(tmp_path)
    net = {"name": "mlp", "width": 32}
    student = distill("python:mine_teacher:Mine", out=tmp_path / "run",
                      overrides=RUN | {"student.init": "random", "student.net": net, "train.steps": 80})
    teacher = load_teacher("python:mine_teacher:Mine")
    assert loss_of(student, teacher) < 0.5 * loss_of(make_student(teacher, "random", net), teacher)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["compiled", "quantised", "scripted"])
def test_only_the_forward_pass_is_used(how):
    """So that a teacher may be anything that answers."""
    good = tiny_teacher({"name": "mlp", "width": 16, "depth": 2})
    net = copy.deepcopy(good.model)
    if how == "compiled":
        net = torch.compile(net, backend="eager")
    elif how == "quantised":
        net = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, dtype=torch.qint8)
    else:
        net = torch.jit.trace(net, (torch.randn(2, *SHAPE), torch.zeros(2), torch.tensor([0, 1])), check_trace=False)
    teacher = Preconditioned(net, SHAPE, 3).requires_grad_(False)
    x, y = torch.randn(2, *SHAPE), torch.tensor([0, 1])
    D = teacher(x, 1.0, y)
    assert (D - good(x, 1.0, y)).abs().max() < 0.2 and not D.requires_grad
    student = make_student(teacher, "random", {"name": "mlp", "width": 16})
    assert loss_of(student, teacher, batch=2) > 0


def test_a_student_may_begin_as_another(tmp_path):
    teacher = tiny_teacher()
    first = make_student(teacher, "random")
    first.save(tmp_path / "student")
    again = make_student(teacher, str(tmp_path / "student"))
    z, y = torch.randn(2, *SHAPE) * 80, torch.tensor([0, 1])
    assert torch.equal(again(z, 1.0, y), first(z, 1.0, y)) and all(p.requires_grad for p in again.parameters())
    black_box = FunctionDenoiser(teacher.denoise, SHAPE, 3)
    assert torch.equal(make_student(black_box, str(tmp_path / "student"))(z, 1.0, y), first(z, 1.0, y))


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("operator", "jump")])
def test_every_start_has_the_form_that_is_asked_for(form, tmp_path):
    teacher, net = tiny_teacher(), {"name": "mlp", "width": 16}
    write_folder(tmp_path / "t", collect_tensors(teacher), {"config": describe_teacher(teacher)})
    first = make_student(teacher, form=form)
    first.save(tmp_path / "s")
    for init in (tmp_path / "t", tmp_path / "s"):
        again, x, y = make_student(teacher, str(init), form=form), torch.randn(2, *SHAPE), torch.tensor([0, 1])
        assert again.form == form and torch.equal(again(x, 1.0, y), first(x, 1.0, y))
    assert make_student(teacher, "random", net, form=form).form == form
    for other in FORMS.keys() - {form}:
        with pytest.raises(PidistillError, match=f"is of the form {form}, this one is to be of the form {other}"):
            make_student(teacher, str(tmp_path / "s"), form=other)


def test_an_unknown_form_is_one_line():
    with pytest.raises(PidistillError, match=r"unknown form of a student 'denoise'; did you mean 'denoiser'\? \(choices: "):
        make_student(tiny_teacher(), form="denoise")


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_does_not_look_at_the_time_is_for_forms_that_are_asked_once(form):
    """As `drawing_time` alone: Eq. (7) and a consistency function change with t."""
    make = lambda: make_student(tiny_teacher(), "random", {"name": "equilibrium", "width": 16, "heads": 2}, form=form)
    if form in ("denoiser", "direct"):
        student = make()
        assert student.sample([0, 1]).shape == (2, *SHAPE)
    else:
        with pytest.raises(PidistillError, match=f"student.net: equilibrium does not look at the time, .* the form {form}"):
            make()


def test_a_black_box_s_student_may_begin_as_a_teacher(tmp_path):
    digits = load_teacher("bundled:digits")
    convert("bundled:digits", tmp_path / "t")
    black_box = FunctionDenoiser(digits.denoise, digits.shape, 10)
    ours, usual = make_student(black_box, str(tmp_path / "t")), make_student(digits)
    z, y = torch.randn(2, 1, 16, 16) * 80, torch.tensor([0, 1])
    assert torch.equal(ours(z, 1.0, y), usual(z, 1.0, y))


def test_what_does_not_fit_is_one_line(tmp_path):
    make_student(tiny_teacher()).save(tmp_path / "s")
    other = tiny_teacher(classes=4)
    with pytest.raises(PidistillError, match=r"is for \(1, 8, 8\) in 3 classes, the teacher's are \(1, 8, 8\) in 4"):
        make_student(other, str(tmp_path / "s"))
    with pytest.raises(PidistillError, match="teacher, random or a folder"):
        make_student(other, "tacher")
    with pytest.raises(PidistillError, match=r"leave student\.net"):
        make_student(other, str(tmp_path / "s"), {"name": "mlp"})
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    with pytest.raises(PidistillError, match="holds no student and no teacher"):
        make_student(other, str(tmp_path / "x"))


def test_nothing_of_the_student_is_dropped_by_chance(tmp_path):
    """A DiT in training mode drops one label in ten: two times of one noise had different labels, and no derivative."""
    pytest.importorskip("diffusers")
    from tests.models.teachers.test_diffusers import ddim, dit, save, unet, vae

    for network, more in ((dit(), (vae(), "DiTPipeline")), (unet(classes=5, dropout=0.3), ())):
        teacher = load_teacher(save(tmp_path / type(network).__name__, ddim(), network, *more))
        student = make_student(teacher).train()
        z, y = torch.randn(64, *teacher.shape) * teacher.t_max, torch.arange(64) % 5
        with torch.no_grad():
            first, again, evaluated = student(z, 1.0, y), student(z, 1.0, y), student.eval()(z, 1.0, y)
        assert torch.equal(first, again)
        torch.testing.assert_close(evaluated, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form, extension", [("jump", {"times": 2}), ("operator", {"temporal": 3})])
def test_a_network_is_extended_for_its_form(form, extension, tmp_path):
    """It begins as what it would be without; a student in a folder has the extension already."""
    teacher = tiny_teacher()
    plan = {"form": form, "extension": extension, **({"times": (80.0, 1.0, 0.002)} if form == "operator" else {})}
    first, x, y = make_student(teacher, **plan), torch.randn(3, *SHAPE), torch.tensor([0, 1, 2])
    assert {key: first.net_spec[key] for key in extension} == extension
    plain = make_student(teacher, form="trajectory" if form == "operator" else "denoiser")
    if form == "operator":
        torch.testing.assert_close(first(x, 1.0, y), plain(x, 1.0, y), rtol=0, atol=1e-5)
    else:
        s = 0.002 / 1.0
        torch.testing.assert_close(first(x, 1.0, y), s * x + (1 - s) * plain(x, 1.0, y), rtol=0, atol=1e-5)
    first.save(tmp_path / "s")
    again = make_student(teacher, str(tmp_path / "s"), **plan)
    assert again.net_spec == first.net_spec and torch.equal(again(x, 1.0, y), first(x, 1.0, y))
    assert make_student(teacher, "random", {"name": "mlp", "width": 16}, **plan).net_spec["name"] == "mlp"
    own = Preconditioned(teacher.model, SHAPE, 3)
    with pytest.raises(PidistillError, match=r"has no option .*; networks that have: dhariwal_unet, mlp, song_unet"):
        make_student(own, **plan)
