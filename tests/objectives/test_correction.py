"""The fake, by which a correction knows what the student draws, and its loss."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Setup
from pidistill.objectives.pid_corrected import PIDCorrected
from tests.helpers import MLP, SHAPE, draw, grid_of, tiny_teacher
from tests.objectives.test_pid_corrected import POINTS, corrected, double, gradient, student_image


def test_the_fake_s_loss_is_edm_s_on_the_student_s_images():
    objective = double(corrected())
    batch = {key: value.double() if value.is_floating_point() else value
             for key, value in draw(objective, range(5), number=0).items()}
    t, s = batch["t"][:, None, None, None], objective.sigma_data
    image = student_image(objective, batch).detach()
    D = objective.networks["fake"](image + t * batch["n"], batch["t"], batch["labels"])
    plain = ((t**2 + s**2) / (t * s) ** 2 * (D - image) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(objective.imitate(batch), plain, rtol=1e-12, atol=0)
    grads = torch.autograd.grad(objective.imitate(batch).sum(), [*objective.networks["student"].parameters()],
                                allow_unused=True)
    assert all(g is None for g in grads)


def test_a_fake_that_is_the_teacher_corrects_nothing():
    objective = corrected(shaken=False)
    batch = draw(objective, range(5), number=1, part=1)
    assert gradient(objective, objective.correct(batch).sum()).abs().max() == 0


def test_the_fake_is_the_teacher_without_guidance():
    teacher = tiny_teacher(classes=4).set_guidance(3, null=1)
    fake = corrected(teacher, shaken=False).networks["fake"]
    x, t, y = torch.randn(4, *SHAPE), torch.tensor([0.1, 1.0, 5.0, 40.0]), torch.tensor([0, 1, 2, 0])
    plain = tiny_teacher(classes=4).set_guidance(null=1)
    torch.testing.assert_close(fake(x, t, y), plain(x, t, y), rtol=0, atol=0)
    assert not torch.allclose(fake(x, t, y), teacher(x, t, y), atol=1e-3)
    assert all(p.requires_grad for p in fake.parameters()) and not any(p.requires_grad for p in teacher.parameters())


def test_a_black_box_s_fake_is_named(tmp_path):
    teacher = FunctionDenoiser(lambda x, t, y: x / (1 + t[:, None, None, None] ** 2), SHAPE, 3)
    student = make_student(teacher, "random", net=MLP)
    setup = Setup(student, teacher, grid_of(teacher, POINTS))
    with pytest.raises(PidistillError, match=r"set objective.fake"):
        PIDCorrected(setup)
    for named in (MLP, "mlp"):
        objective = PIDCorrected(setup, fake=named)
        batch = draw(objective, range(3), number=1, part=1)
        assert gradient(objective, objective.correct(batch).mean()).abs().max() > 0
    with pytest.raises(PidistillError, match="gives"):
        PIDCorrected(setup, fake="bundled:digits")


def test_a_fake_of_another_teacher():
    teacher = load_teacher("bundled:digits")
    box = FunctionDenoiser(lambda x, t, y: teacher(x, t, y), teacher.shape, 10)
    student = make_student(box, "random", net={"name": "mlp", "width": 8})
    fake = PIDCorrected(Setup(student, box, grid_of(box, POINTS)), fake="bundled:digits").networks["fake"]
    x = torch.randn(2, *teacher.shape)
    torch.testing.assert_close(fake(x, 1.0, torch.tensor([1, 2])), teacher(x, 1.0, torch.tensor([1, 2])), rtol=0, atol=0)
