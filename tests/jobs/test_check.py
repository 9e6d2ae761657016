"""The ready check: silent on good denoisers, one clear sentence for every usual mistake."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pidistill import check_teacher, load_teacher
from pidistill.models.denoiser import FunctionDenoiser
from tests.models.test_preconditioning import FORMULAS, teacher_of

GOOD = ["bundled:digits", "gaussian:2,modes=8,std=0.1", "gaussian:1x8x8,mean=0.2,std=0.5", "gaussian:3,modes=3,classes"]


@pytest.mark.parametrize("spec", GOOD)
def test_good_denoisers_pass(spec):
    assert {check.verdict for check in check_teacher(load_teacher(spec))} == {"ok"}


@pytest.mark.parametrize("kind", FORMULAS)
def test_every_preconditioning_of_a_perfect_network_passes(kind):
    assert [check for check in check_teacher(teacher_of(kind)) if check.verdict == "wrong"] == []


def broken(change, shape=None, **facts):
    """The bundled digits teacher with a mistake in its call."""
    good = load_teacher("bundled:digits")
    return FunctionDenoiser(lambda x, t, y: change(good, x, t, y), shape or good.shape, good.num_classes,
                            **{"t_min": 0.002, "t_max": 80.0, "sigma_data": 0.5} | facts)


def in_place(good, x, t, y):
    D = good(x, t, y)
    x.mul_(0.5)
    return D


NORM = nn.BatchNorm2d(1).train()
MISTAKES = {
    "raises": (lambda good, x, t, y: good(x, t, y, 3), "call"),
    "drops a channel": (lambda good, x, t, y: good(x, t, y)[:, 0], "shape"),
    "float64": (lambda good, x, t, y: good(x, t, y).double(), "type"),
    "changes x": (in_place, "input"),
    "not finite": (lambda good, x, t, y: good(x, t, y) / (t > 1)[:, None, None, None], "finite"),
    "gives the noise": (lambda good, x, t, y: (x - good(x, t, y)) / t[:, None, None, None], "small t"),
    "gives v": (lambda good, x, t, y: (x - good(x, t, y)) / t[:, None, None, None] - good(x, t, y), "small t"),
    "returns x": (lambda good, x, t, y: x.clone(), "large t"),
    "ignores t": (lambda good, x, t, y: good(x, torch.full_like(t, 0.002), y), "noise level"),
    "wants the logarithm": (lambda good, x, t, y: good(x, t.exp().clamp(0.002, 80), y), "small t"),
    "wants a step": (lambda good, x, t, y: good(x, (t * 1000).clamp(0.002, 80), y), "small t"),
    "images in [0, 1]": (lambda good, x, t, y: (good(2 * x - 1, 2 * t, y) + 1) / 2, "range"),
    "dropout": (lambda good, x, t, y: good(x, t, y) + 0.05 * torch.randn_like(x), "repeatable"),
    "batch normalisation": (lambda good, x, t, y: NORM(good(x, t, y)), "batch"),
    "ignores labels": (lambda good, x, t, y: good(x, t, torch.zeros_like(y)), "labels"),
    "scales by 2": (lambda good, x, t, y: 2 * good(x, t, y), "small t"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    change, name = MISTAKES[mistake]
    checks = {check.name: check for check in check_teacher(broken(change))}
    assert name in checks and checks[name].verdict != "ok", {k: v.says for k, v in checks.items()}
    assert "\n" not in checks[name].says and len(checks[name].says) > 20
    if mistake == "gives the noise":
        assert "needs D = x - t eps" in checks[name].says


CALLED = ["shape", "type", "input", "finite"]
ASKED = [*CALLED, "small t", "large t", "noise level", "denoises", "range", "repeatable", "batch", "labels", "speed"]


@pytest.mark.parametrize("spec, names", [
    ("bundled:digits", ASKED), ("gaussian:2", [name for name in ASKED if name not in ("range", "labels")]),
    ("gaussian:3,modes=3,classes", [name for name in ASKED if name != "range"])])
def test_questions_in_their_order_and_those_that_do_not_apply_are_left_out(spec, names):
    assert [check.name for check in check_teacher(load_teacher(spec), batch=4)] == names


@pytest.mark.parametrize("mistake, names", [("raises", ["call"]), ("drops a channel", ["shape"]), ("not finite", CALLED)])
def test_nothing_more_is_asked_after_an_answer_that_leaves_nothing_to_ask_about(mistake, names):
    assert [check.name for check in check_teacher(broken(MISTAKES[mistake][0]))] == names


def test_a_teacher_of_few_noise_levels_is_not_asked_about_those_between():
    narrow = FunctionDenoiser(lambda x, t, y: x * 0, (1, 4, 4), t_min=0.01, t_max=0.5, sigma_data=0.5)
    names = [check.name for check in check_teacher(narrow)]
    assert "large t" in names and not {"noise level", "denoises"} & set(names)


def test_an_error_is_told_whole():
    def fail(x, t, y):
        raise ValueError("no such layer\nand more")

    check, = check_teacher(FunctionDenoiser(fail, (1, 4, 4), t_min=0.01, t_max=10, sigma_data=0.5), batch=2)
    assert check.says.endswith("fail failed on x (2, 1, 4, 4) float32, t = 10: ValueError: no such layer and more")
    assert isinstance(check.error.__cause__, ValueError)


def only(condition, then):
    """A mistake that is made on some inputs alone."""
    return lambda good, x, t, y: then(x) if condition(x, t) else good(x, t, y)


def fail(x):
    raise RuntimeError("here\nit ends")


@pytest.mark.parametrize("mistake, name, words, before", [
    (only(lambda x, t: len(x) == 1, fail), "call", "RuntimeError: here it ends", "repeatable"),
    (only(lambda x, t: t[0] < 0.1, fail), "call", "t = 0.0351867, labels (16,) int64: RuntimeError: here it ends", "input"),
    (only(lambda x, t: len(x) == 1, lambda x: (x,)), "call", "a tuple of 1: return D alone", "repeatable"),
    (only(lambda x, t: t[0] < 0.1, lambda x: None), "call", "it gives None", "input"),
    (only(lambda x, t: len(x) == 1, lambda x: x[:0]), "call", "it gives (0, 1, 16, 16)", "repeatable"),
    (lambda good, x, t, y: good(x, t, y).long(), "type", "torch.int64", "shape"),
    (lambda good, x, t, y: (good(x, t, y) * 255).to(torch.uint8), "type", "torch.uint8", "shape")])
def test_mistakes_that_end_the_check_are_the_last_answer(mistake, name, words, before):
    *_, last, end = check_teacher(broken(mistake))
    assert (last.name, end.name, end.verdict) == (before, name, "wrong") and words in end.says


def test_other_decimal_numbers_are_a_warning_and_the_check_goes_on():
    checks = check_teacher(broken(lambda good, x, t, y: good(x, t, y).half()))
    assert [check.name for check in checks] == ASKED and checks[1].verdict == "warning"


def test_ctrl_c_ends_the_check():
    with pytest.raises(KeyboardInterrupt):
        check_teacher(broken(only(lambda x, t: t[0] < 0.1, lambda x: (_ for _ in ()).throw(KeyboardInterrupt()))))


def test_verb(command, tmp_path, monkeypatch):
    done = command("inspect", "bundled:digits", "--check")
    assert done.code == 0 and "small t" in done.out and "wrong" not in done.out
    (tmp_path / "bad_teacher.py").write_text(
        "import pidistill\n\nclass Bad(pidistill.Denoiser):\n"
        "    def __init__(self):\n        super().__init__((1, 4, 4))\n\n"
        "    def denoise(self, x, t, labels=None):\n        return 3 * x\n")
    monkeypatch.chdir(tmp_path)
    done = command("inspect", "python:bad_teacher:Bad", "--check")
    assert done.code == 1 and "wrong" in done.out
